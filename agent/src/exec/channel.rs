//! The agent's end of an invocation channel: frames over a stream socket whose
//! other end the VMM gives to the guest.

use std::io::{self, IoSlice, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use snapback_proto::frame::{FrameError, FrameHeader, HEADER_LEN, frame_head};
use snapback_proto::guest::{GuestMessage, HostMessage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Bytes that are read at once: most messages whole, with what follows them.
const READ_SIZE: usize = 4096;

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

/// Messages on their way to a guest, and how much of them is gone.
#[derive(Debug)]
pub struct Outgoing<'a> {
    heads: Vec<u8>,
    payload: &'a [u8],
    sent: usize,
}

impl<'a> Outgoing<'a> {
    /// Messages one after the other; the payload is the last one's.
    ///
    /// # Errors
    /// When a message or the payload is too long.
    pub fn new(messages: &[HostMessage], payload: &'a [u8]) -> Result<Self, ChannelError> {
        let mut heads = Vec::new();
        for (number, message) in messages.iter().enumerate() {
            let is_last = number + 1 == messages.len();
            let length = if is_last { payload.len() } else { 0 };
            heads.extend(frame_head(message, length)?);
        }
        Ok(Self {
            heads,
            payload,
            sent: 0,
        })
    }

    /// Whether all of it is gone.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.sent == self.heads.len() + self.payload.len()
    }

    /// What is left.
    fn slices(&self) -> [IoSlice<'_>; 2] {
        let heads = &self.heads[self.sent.min(self.heads.len())..];
        let payload = &self.payload[self.sent.saturating_sub(self.heads.len())..];
        [IoSlice::new(heads), IoSlice::new(payload)]
    }
}

/// One lease's channel.
#[derive(Debug)]
pub struct Channel {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

/// The reading half.
pub struct Reader<'a>(&'a mut BufReader<OwnedReadHalf>);

/// The writing half.
pub struct Writer<'a>(&'a mut OwnedWriteHalf);

impl Channel {
    /// A fresh channel, and the end that goes to the VMM (non-blocking, as ours).
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = sockets()?;
        Ok((Self::over(ours)?, theirs))
    }

    /// As [`Self::pair`], with messages in it already: as much of them as fits.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn loaded(outgoing: &mut Outgoing<'_>) -> io::Result<(Self, OwnedFd)> {
        let (mut ours, theirs) = sockets()?;
        while !outgoing.is_sent() {
            match ours.write_vectored(&outgoing.slices()) {
                Ok(sent) => outgoing.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok((Self::over(ours)?, theirs))
    }

    fn over(socket: StdStream) -> io::Result<Self> {
        let (reader, writer) = UnixStream::from_std(socket)?.into_split();
        Ok(Self {
            reader: BufReader::with_capacity(READ_SIZE, reader),
            writer,
        })
    }

    /// Both halves, so that a guest that logs while it is being written to does
    /// not stop everything.
    pub fn split(&mut self) -> (Reader<'_>, Writer<'_>) {
        (Reader(&mut self.reader), Writer(&mut self.writer))
    }
}

fn sockets() -> io::Result<(StdStream, OwnedFd)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok((ours.into(), theirs))
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
        let mut outgoing = Outgoing::new(std::slice::from_ref(message), payload)?;
        self.finish(&mut outgoing).await
    }

    /// Sends what is left of messages. Nothing is lost when this is given up and begun
    /// anew.
    ///
    /// # Errors
    /// When the channel ends.
    pub async fn finish(&mut self, outgoing: &mut Outgoing<'_>) -> Result<(), ChannelError> {
        while !outgoing.is_sent() {
            match self.0.write_vectored(&outgoing.slices()).await? {
                0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                sent => outgoing.sent += sent,
            }
        }
        Ok(())
    }

    /// Sends what is left of messages, beside what is awaited: there is no end but a
    /// failure.
    pub async fn keep_sending(&mut self, outgoing: &mut Outgoing<'_>) -> ChannelError {
        match self.finish(outgoing).await {
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        }
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
        GuestMessage::Gathered { .. } => "Gathered",
    };
    ChannelError::OutOfTurn { said, expected }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use snapback_proto::frame::{read_frame, write_frame};
    use snapback_proto::guest::{Invoke, LogStream};

    use super::*;

    fn invoke() -> HostMessage {
        HostMessage::Invoke(Invoke {
            request: crate::ids::new_request_id().unwrap(),
            deadline_ms: 0,
            function_arn: String::new(),
            trace_id: None,
            client_context: None,
            tenant_id: None,
        })
    }

    #[tokio::test]
    async fn messages_are_in_the_channel_before_anybody_reads_and_the_rest_follows() {
        for length in [0, 1, 100_000, 3 * 1024 * 1024] {
            let payload = vec![7; length];
            let messages = [invoke(), invoke(), invoke()];
            let mut outgoing = Outgoing::new(&messages, &payload).unwrap();
            let (mut channel, theirs) = Channel::loaded(&mut outgoing).unwrap();
            assert_eq!(outgoing.is_sent(), length < 1024 * 1024, "{length}");
            let mut guest = StdStream::from(theirs);
            guest.set_nonblocking(false).unwrap();
            let guest = std::thread::spawn(move || {
                let mut read = || read_frame::<HostMessage>(&mut guest).unwrap();
                [read(), read(), read()]
            });
            let (_, mut writer) = channel.split();
            writer.finish(&mut outgoing).await.unwrap();
            let got = guest.join().unwrap();
            let (said, payloads): (Vec<_>, Vec<_>) = got.into_iter().unzip();
            assert_eq!(said, messages);
            assert!(payloads[0].is_empty() && payloads[1].is_empty());
            assert!(payloads[2] == payload);
        }
    }

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
        let invoke = invoke();
        let (mut reader, mut writer) = channel.split();
        let (sent, received) = tokio::join!(writer.send(&invoke, &large), reader.receive());
        sent.unwrap();
        assert!(received.unwrap().1 == large);
        drop(channel);
        guest.join().unwrap();
    }
}
