//! The invocation channel: frames over one stream to the host.
//!
//! Nothing here blocks. What arrives is buffered until a frame is complete, what
//! leaves is queued until the socket takes it; frames are queued whole, so they
//! never interleave. Between requests both buffers are empty: the state in which
//! a snapshot finds the stream is "nothing partly read, nothing partly written".

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use serde::Serialize;
use serde::de::DeserializeOwned;
use snapback_proto::frame::{FrameError, FrameHeader, HEADER_LEN, frame_head};

use crate::output::OutputQueue;

/// Room for a read while no frame's length is known. A resume fits in.
const READ_SIZE: usize = 4096;

/// How long a frame that is no hurry waits for another one to go with. Each packet wakes
/// the VMM and the agent: of short requests, this saves one in four.
const LINGER: Duration = Duration::from_millis(10);

/// The channel cannot be used any further.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The host's end is gone.
    #[error("the host has closed the invocation channel")]
    Closed,
    /// The socket failed.
    #[error("the invocation channel's socket failed")]
    Socket(#[source] io::Error),
    /// What arrives is no frame, or what is to leave fits in none.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// The guest's end of the channel.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    input: Vec<u8>,
    output: OutputQueue,
    /// When what is queued has to leave, as long as all of it may wait.
    due: Option<Instant>,
}

impl Channel {
    /// Takes a connected stream.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            input: Vec::with_capacity(READ_SIZE),
            output: OutputQueue::default(),
            due: None,
        }
    }

    /// Reads once what is there.
    ///
    /// # Errors
    /// When the stream has ended or failed.
    pub fn receive(&mut self) -> Result<(), ChannelError> {
        // The buffer never grows beyond one frame, which the header has capped.
        let missing = self.frame_len()?.saturating_sub(self.input.len());
        self.input.reserve(missing.max(READ_SIZE));
        let room = spare_capacity(&mut self.input);
        match recv(&self.socket, room, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(ChannelError::Closed),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(Errno::CONNRESET | Errno::PIPE) => Err(ChannelError::Closed),
            Err(errno) => Err(ChannelError::Socket(errno.into())),
        }
    }

    /// Takes the next complete frame out of what has been received.
    ///
    /// # Errors
    /// When the bytes are no frame or the message is none of `T`.
    pub fn next_frame<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<(T, Vec<u8>)>, ChannelError> {
        let frame_len = self.frame_len()?;
        let Some(header) = self.header()? else {
            return Ok(None);
        };
        if self.input.len() < frame_len {
            return Ok(None);
        }
        let body = self.input[HEADER_LEN..frame_len].to_vec();
        self.input.drain(..frame_len);
        if self.input.is_empty() && self.input.capacity() > 2 * READ_SIZE {
            self.input = Vec::with_capacity(READ_SIZE);
        }
        Ok(Some(header.split(body)?))
    }

    /// Queues a frame. [`flush`](Self::flush) sends it.
    ///
    /// # Errors
    /// When a part is over its cap.
    pub fn queue<T: Serialize>(
        &mut self,
        message: &T,
        payload: Vec<u8>,
    ) -> Result<(), ChannelError> {
        let head = frame_head(message, payload.len())?;
        self.output.push(head);
        self.output.push(payload);
        self.due = None;
        Ok(())
    }

    /// Queues a frame that is in no hurry: [`flush`](Self::flush) sends it with the next
    /// one that is, or when it is [`due`](Self::due).
    ///
    /// # Errors
    /// When the message is over its cap.
    pub fn queue_lazily<T: Serialize>(&mut self, message: &T) -> Result<(), ChannelError> {
        let alone = self.output.is_empty();
        self.queue(message, Vec::new())?;
        self.due = alone.then(|| Instant::now() + LINGER);
        Ok(())
    }

    /// When a frame that waits for another one leaves without.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Sends what is queued, as far as the socket takes it.
    ///
    /// # Errors
    /// When the stream has ended or failed.
    pub fn flush(&mut self) -> Result<(), ChannelError> {
        if self.due.is_some_and(|due| Instant::now() < due) {
            return Ok(());
        }
        self.due = None;
        self.output
            .send(&self.socket)
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ChannelError::Closed,
                _ => ChannelError::Socket(error),
            })
    }

    /// Bytes that the socket has not taken yet.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.output.len()
    }

    /// Whether the socket had no room for what is queued.
    #[must_use]
    pub fn wants_room(&self) -> bool {
        self.unsent() > 0 && self.due.is_none()
    }

    fn header(&self) -> Result<Option<FrameHeader>, FrameError> {
        let header = self.input.first_chunk::<HEADER_LEN>();
        header.map(FrameHeader::parse).transpose()
    }

    /// Length of the frame that the input begins with, as far as it is known.
    fn frame_len(&self) -> Result<usize, FrameError> {
        let body = self.header()?.map_or(0, |header| header.body_len());
        Ok(HEADER_LEN + body)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use snapback_proto::frame::{MAX_PAYLOAD, read_frame, write_frame};

    use super::*;

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Channel::new(ours.into()), theirs)
    }

    #[test]
    fn frames_come_apart_wherever_the_stream_is_cut() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &1_u32, b"one").unwrap();
        write_frame(&mut wire, &2_u32, b"").unwrap();
        for cut in 1..wire.len() {
            let (mut channel, mut host) = pair();
            let mut got = Vec::new();
            for piece in [&wire[..cut], &wire[cut..]] {
                host.write_all(piece).unwrap();
                channel.receive().unwrap();
                while let Some(frame) = channel.next_frame::<u32>().unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, [(1, b"one".to_vec()), (2, Vec::new())], "cut at {cut}");
            assert!(channel.input.is_empty());
        }
    }

    #[test]
    fn the_largest_frame_passes_both_ways_and_leaves_no_buffer_behind() {
        let (mut channel, mut host) = pair();
        let body = vec![9; MAX_PAYLOAD];
        let sent = body.clone();
        let peer = std::thread::spawn(move || {
            write_frame(&mut host, &1_u8, &sent).unwrap();
            read_frame::<u8>(&mut host).unwrap()
        });
        let (_, got) = loop {
            channel.receive().unwrap();
            if let Some(frame) = channel.next_frame::<u8>().unwrap() {
                break frame;
            }
        };
        assert!(channel.input.capacity() <= 2 * READ_SIZE);
        channel.queue(&2_u8, got).unwrap();
        while channel.unsent() > 0 {
            channel.flush().unwrap();
        }
        assert_eq!(peer.join().unwrap(), (2, body));
    }

    #[test]
    fn a_frame_in_no_hurry_leaves_with_the_next_one_or_when_it_is_due() {
        let (mut channel, mut host) = pair();
        host.set_nonblocking(true).unwrap();
        channel.queue_lazily(&1_u8).unwrap();
        channel.flush().unwrap();
        assert!(channel.unsent() > 0 && !channel.wants_room());
        assert!(read_frame::<u8>(&mut host).is_err());
        channel.queue(&2_u8, Vec::new()).unwrap();
        channel.flush().unwrap();
        assert_eq!(read_frame::<u8>(&mut host).unwrap().0, 1);
        assert_eq!(read_frame::<u8>(&mut host).unwrap().0, 2);

        channel.queue_lazily(&3_u8).unwrap();
        let due = channel.due().unwrap();
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        channel.flush().unwrap();
        assert_eq!(read_frame::<u8>(&mut host).unwrap().0, 3);
        assert_eq!((channel.unsent(), channel.due()), (0, None));
        // Not behind one that is on its way.
        channel.queue(&4_u8, Vec::new()).unwrap();
        channel.queue_lazily(&5_u8).unwrap();
        assert_eq!(channel.due(), None);
    }

    #[test]
    fn garbage_and_a_closed_host_are_told_apart() {
        let (mut channel, mut host) = pair();
        host.write_all(&[0; 16]).unwrap();
        channel.receive().unwrap();
        assert!(matches!(
            channel.next_frame::<u8>(),
            Err(ChannelError::Frame(FrameError::Magic))
        ));
        let (mut channel, host) = pair();
        drop(host);
        assert!(matches!(channel.receive(), Err(ChannelError::Closed)));
    }
}
