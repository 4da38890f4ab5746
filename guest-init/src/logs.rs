//! The runtime's output, on its way to the channel.
//!
//! Two pipes, read without blocking. What a process has written before it speaks
//! to the Runtime API is in its pipes by then, so draining them first puts its
//! output before its answer. A pipe is not read while the function is parked or
//! while the channel is full: then the function waits for its own output, and
//! nothing is lost or buffered without bound.

use std::io;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, ioctl_fionread, read};
use snapback_proto::guest::{GuestMessage, LogStream, MAX_LOG_CHUNK};

use crate::channel::{Channel, ChannelError};
use crate::poller::{Interest, Poller, Token};
use crate::telemetry::Telemetry;
use crate::telemetry::subscription::Kind;

/// Output could not be passed on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A pipe cannot be read or watched.
    #[error("the runtime's {stream:?} cannot be read")]
    Pipe {
        /// Which one.
        stream: LogStream,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The channel cannot be used.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

#[derive(Debug)]
struct LogPipe {
    place: u8,
    stream: LogStream,
    pipe: OwnedFd,
    watched: bool,
}

/// The output streams that are still open.
#[derive(Debug, Default)]
pub struct Logs {
    pipes: Vec<LogPipe>,
}

impl Logs {
    /// Takes the read end (non-blocking) of an output stream, under a number of its
    /// own. It is watched from the next [`watch`](Self::watch) on.
    pub fn add(&mut self, place: u8, stream: LogStream, pipe: OwnedFd) {
        self.pipes.push(LogPipe {
            place,
            stream,
            pipe,
            watched: false,
        });
    }

    /// Passes on one chunk of a stream that has something to read, or forgets the
    /// stream when it has ended.
    ///
    /// # Errors
    /// When the pipe or the channel fails.
    pub fn pump(
        &mut self,
        place: u8,
        channel: &mut Channel,
        telemetry: &mut Telemetry,
    ) -> Result<(), LogError> {
        let Some(index) = self.pipes.iter().position(|pipe| pipe.place == place) else {
            return Ok(());
        };
        if self.pipes[index].pump(MAX_LOG_CHUNK, channel, telemetry)? == Pumped::Ended {
            self.pipes.swap_remove(index);
        }
        Ok(())
    }

    /// Passes on what is in the pipes now. What a process adds meanwhile is not
    /// waited for, so this ends.
    ///
    /// # Errors
    /// When a pipe or the channel fails.
    pub fn drain(
        &mut self,
        channel: &mut Channel,
        telemetry: &mut Telemetry,
    ) -> Result<(), LogError> {
        for pipe in &mut self.pipes {
            let mut left = pipe.waiting()?;
            while left > 0 {
                match pipe.pump(left.min(MAX_LOG_CHUNK), channel, telemetry)? {
                    Pumped::Bytes(count) => left = left.saturating_sub(count),
                    Pumped::Nothing | Pumped::Ended => break,
                }
            }
        }
        Ok(())
    }

    /// Watches the pipes, or stops watching them: a pipe that nobody reads would
    /// wake the loop over and over.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch(&mut self, watch: bool, poller: &Poller) -> Result<(), LogError> {
        for pipe in self.pipes.iter_mut().filter(|p| p.watched != watch) {
            let changed = if watch {
                poller.add(&pipe.pipe, Token::Log(pipe.place), Interest::READ)
            } else {
                poller.remove(&pipe.pipe)
            };
            changed.map_err(|source| pipe.error(source))?;
            pipe.watched = watch;
        }
        Ok(())
    }
}

/// What kind of telemetry a stream is.
fn kind_of(stream: LogStream) -> Kind {
    match stream {
        LogStream::Stdout | LogStream::Stderr => Kind::Function,
        LogStream::Extension => Kind::Extension,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Pumped {
    Bytes(usize),
    Nothing,
    Ended,
}

impl LogPipe {
    fn waiting(&self) -> Result<usize, LogError> {
        let waiting = ioctl_fionread(&self.pipe).map_err(|errno| self.error(errno.into()))?;
        Ok(usize::try_from(waiting).unwrap_or(MAX_LOG_CHUNK))
    }

    fn pump(
        &self,
        most: usize,
        channel: &mut Channel,
        telemetry: &mut Telemetry,
    ) -> Result<Pumped, LogError> {
        let expected = self.waiting()?.clamp(1, most);
        let mut chunk = Vec::new();
        chunk.reserve_exact(expected);
        match read(&self.pipe, spare_capacity(&mut chunk)) {
            Ok(0) => return Ok(Pumped::Ended),
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Pumped::Nothing),
            Err(errno) => return Err(self.error(errno.into())),
        }
        let count = chunk.len();
        let stream = self.stream;
        telemetry.output(self.place, kind_of(stream), &chunk);
        channel.queue(&GuestMessage::Log { stream }, chunk)?;
        Ok(Pumped::Bytes(count))
    }

    fn error(&self, source: io::Error) -> LogError {
        let stream = self.stream;
        LogError::Pipe { stream, source }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::pipe::{PipeFlags, pipe_with};
    use snapback_proto::frame::read_frame;

    use super::*;

    fn setup() -> (Logs, OwnedFd, Channel, UnixStream) {
        let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let mut logs = Logs::default();
        logs.add(0, LogStream::Stdout, read_end);
        let (ours, host) = UnixStream::pair().unwrap();
        (logs, write_end, Channel::new(ours.into()), host)
    }

    fn next(host: &mut UnixStream) -> (GuestMessage, Vec<u8>) {
        read_frame(host).unwrap()
    }

    #[test]
    fn what_was_written_before_a_drain_precedes_what_is_queued_after_it() {
        let (mut logs, out, mut channel, mut host) = setup();
        rustix::io::write(&out, b"before").unwrap();
        logs.drain(&mut channel, &mut Telemetry::default()).unwrap();
        channel
            .queue(&GuestMessage::Resumed { generation: 1 }, Vec::new())
            .unwrap();
        rustix::io::write(&out, b"after").unwrap();
        logs.pump(0, &mut channel, &mut Telemetry::default())
            .unwrap();
        channel.flush().unwrap();

        let stdout = GuestMessage::Log {
            stream: LogStream::Stdout,
        };
        assert_eq!(next(&mut host), (stdout.clone(), b"before".to_vec()));
        assert_eq!(next(&mut host).0, GuestMessage::Resumed { generation: 1 });
        assert_eq!(next(&mut host), (stdout, b"after".to_vec()));
    }

    #[test]
    fn a_full_pipe_leaves_in_chunks_within_the_cap_and_in_order() {
        let (mut logs, out, mut channel, mut host) = setup();
        let _ = rustix::pipe::fcntl_setpipe_size(&out, 256 * 1024);
        let mut written = 0_u32;
        while rustix::io::write(&out, &written.to_le_bytes()).is_ok() {
            written += 1;
        }
        assert!(written > 10_000);
        logs.drain(&mut channel, &mut Telemetry::default()).unwrap();
        drop(out);
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            while all.len() < usize::try_from(written).unwrap() * 4 {
                let (_, chunk) = next(&mut host);
                assert!((1..=MAX_LOG_CHUNK).contains(&chunk.len()));
                all.extend(chunk);
            }
            all
        });
        while channel.unsent() > 0 {
            channel.flush().unwrap();
        }
        let numbers = reader.join().unwrap();
        for (index, bytes) in numbers.chunks(4).enumerate() {
            assert_eq!(bytes, u32::try_from(index).unwrap().to_le_bytes());
        }
    }

    #[test]
    fn a_closed_stream_is_forgotten() {
        let (mut logs, out, mut channel, _host) = setup();
        drop(out);
        logs.pump(0, &mut channel, &mut Telemetry::default())
            .unwrap();
        assert!(logs.pipes.is_empty());
        logs.pump(0, &mut channel, &mut Telemetry::default())
            .unwrap();
        logs.drain(&mut channel, &mut Telemetry::default()).unwrap();
    }
}
