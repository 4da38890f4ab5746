//! The agent's end of an invocation channel: frames over a stream socket whose
//! other end the VMM gives to the guest.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;

use snapback_proto::frame::{FrameError, FrameHeader, HEADER_LEN, frame_head};
use snapback_proto::guest::{GuestMessage, HostMessage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};

/// The channel to a guest failed.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A frame could not be written or read.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The guest said something that it may not say now.
    #[error("the guest said `{said}` where {expected} was expected")]
    OutOfTurn {
        /// What it said.
        said: &'static str,
        /// What it could have said.
        expected: &'static str,
    },
    /// The guest confirmed another restore than its own.
    #[error("the guest confirmed generation {confirmed}, not {expected}")]
    Generation {
        /// What it said.
        confirmed: u64,
        /// What it was told.
        expected: u64,
    },
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        Self::Frame(error.into())
    }
}

/// One lease's channel.
#[derive(Debug)]
pub struct Channel(UnixStream);

/// The reading half.
pub struct Reader<'a>(ReadHalf<'a>);

/// The writing half.
pub struct Writer<'a>(WriteHalf<'a>);

impl Channel {
    /// A fresh channel, and the end that goes to the VMM (non-blocking, as ours).
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        Ok((Self(UnixStream::from_std(ours)?), theirs.into()))
    }

    /// Both halves, so that a guest that logs while it is being written to does
    /// not stop everything.
    pub fn split(&mut self) -> (Reader<'_>, Writer<'_>) {
        let (reader, writer) = self.0.split();
        (Reader(reader), Writer(writer))
    }
}

impl Reader<'_> {
    /// The guest's next message with its payload.
    ///
    /// # Errors
    /// When the channel ends, or the guest breaks a rule of the frames.
    pub async fn receive(&mut self) -> Result<(GuestMessage, Vec<u8>), ChannelError> {
        let mut header = [0; HEADER_LEN];
        self.0.read_exact(&mut header).await?;
        let header = FrameHeader::parse(&header)?;
        let mut body = vec![0; header.body_len()];
        self.0.read_exact(&mut body).await?;
        Ok(header.split(body)?)
    }
}

impl Writer<'_> {
    /// Sends one message with its payload.
    ///
    /// # Errors
    /// When the channel ends, or the message or payload is too long.
    pub async fn send(
        &mut self,
        message: &HostMessage,
        payload: &[u8],
    ) -> Result<(), ChannelError> {
        let head = frame_head(message, payload.len())?;
        self.0.write_all(&head).await?;
        self.0.write_all(payload).await?;
        Ok(())
    }
}

/// The error for a message that may not come now.
#[must_use]
pub const fn out_of_turn(message: &GuestMessage, expected: &'static str) -> ChannelError {
    let said = match message {
        GuestMessage::Hello { .. } => "Hello",
        GuestMessage::Ready { .. } => "Ready",
        GuestMessage::InitFailed { .. } => "InitFailed",
        GuestMessage::Resumed { .. } => "Resumed",
        GuestMessage::Response { .. } => "Response",
        GuestMessage::Failed { .. } => "Failed",
        GuestMessage::Holding { .. } => "Holding",
        GuestMessage::Delivered { .. } => "Delivered",
        GuestMessage::StreamStarted { .. } => "StreamStarted",
        GuestMessage::StreamChunk => "StreamChunk",
        GuestMessage::StreamEnded { .. } => "StreamEnded",
        GuestMessage::RestoreFailed { .. } => "RestoreFailed",
        GuestMessage::RuntimeExited { .. } => "RuntimeExited",
        GuestMessage::Finished { .. } => "Finished",
        GuestMessage::Log { .. } => "Log",
    };
    ChannelError::OutOfTurn { said, expected }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use snapback_proto::frame::{read_frame, write_frame};
    use snapback_proto::guest::{Invoke, LogStream};

    use super::*;

    #[tokio::test]
    async fn both_directions_carry_large_payloads_at_the_same_time() {
        let (mut channel, theirs) = Channel::pair().unwrap();
        let mut guest = StdStream::from(theirs);
        guest.set_nonblocking(false).unwrap();
        let large = vec![7; 3 * 1024 * 1024];
        let expected = large.clone();
        let guest = std::thread::spawn(move || {
            // Writes before it reads.
            let log = GuestMessage::Log {
                stream: LogStream::Stdout,
            };
            write_frame(&mut guest, &log, &expected).unwrap();
            let (message, payload) = read_frame::<HostMessage>(&mut guest).unwrap();
            assert!(matches!(message, HostMessage::Invoke(_)));
            assert!(payload == expected);
            assert_eq!(guest.read(&mut [0]).unwrap(), 0);
        });
        let invoke = HostMessage::Invoke(Invoke {
            request: crate::ids::new_request_id().unwrap(),
            deadline_ms: 0,
            function_arn: String::new(),
            trace_id: None,
            client_context: None,
            tenant_id: None,
        });
        let (mut reader, mut writer) = channel.split();
        let (sent, received) = tokio::join!(writer.send(&invoke, &large), reader.receive());
        sent.unwrap();
        assert!(received.unwrap().1 == large);
        drop(channel);
        guest.join().unwrap();
    }
}
