//! What the event loop waits for: one epoll instance, level-triggered.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;
use snapback_proto::guest::LogStream;

/// Most events of one wait; the rest comes with the next.
const BATCH: usize = 16;

/// Who an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The invocation channel.
    Channel,
    /// The Runtime API's listener.
    Listener,
    /// The end of the runtime's process.
    Runtime,
    /// The end of any process that PID 1 has to reap.
    Orphans,
    /// An output stream of the runtime.
    Log(LogStream),
    /// A connection to the Runtime API, by its slot.
    Connection(usize),
}

const FIRST_CONNECTION: u64 = 16;

impl Token {
    fn to_data(self) -> EventData {
        EventData::new_u64(match self {
            Self::Channel => 0,
            Self::Listener => 1,
            Self::Runtime => 2,
            Self::Orphans => 3,
            Self::Log(LogStream::Stdout) => 4,
            Self::Log(LogStream::Stderr) => 5,
            Self::Connection(slot) => {
                FIRST_CONNECTION.saturating_add(u64::try_from(slot).unwrap_or(u64::MAX))
            }
        })
    }

    fn from_data(data: EventData) -> Option<Self> {
        Some(match data.u64() {
            0 => Self::Channel,
            1 => Self::Listener,
            2 => Self::Runtime,
            3 => Self::Orphans,
            4 => Self::Log(LogStream::Stdout),
            5 => Self::Log(LogStream::Stderr),
            other => Self::Connection(usize::try_from(other.checked_sub(FIRST_CONNECTION)?).ok()?),
        })
    }
}

/// What a descriptor is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, or its end.
    Read,
    /// That, or room to write.
    ReadWrite,
}

impl Interest {
    /// With or without room to write.
    #[must_use]
    pub fn writing(writing: bool) -> Self {
        if writing { Self::ReadWrite } else { Self::Read }
    }

    fn flags(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN,
            Self::ReadWrite => EventFlags::IN | EventFlags::OUT,
        }
    }
}

/// An epoll instance and the buffer that its events arrive in.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    /// Makes one that watches nothing.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(BATCH),
        })
    }

    /// Watches a descriptor. Closing it ends that.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&self, source: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        epoll::add(&self.epoll, source, token.to_data(), interest.flags())?;
        Ok(())
    }

    /// Watches a descriptor for something else.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn change(&self, source: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        epoll::modify(&self.epoll, source, token.to_data(), interest.flags())?;
        Ok(())
    }

    /// Watches a descriptor no longer.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn remove(&self, source: impl AsFd) -> io::Result<()> {
        epoll::delete(&self.epoll, source)?;
        Ok(())
    }

    /// Waits until something happens and says for whom.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&mut self) -> io::Result<impl Iterator<Item = Token> + use<>> {
        self.wait_for(None)
    }

    /// Says for whom something has happened already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn poll(&mut self) -> io::Result<impl Iterator<Item = Token> + use<>> {
        self.wait_for(Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }))
    }

    fn wait_for(
        &mut self,
        timeout: Option<&Timespec>,
    ) -> io::Result<impl Iterator<Item = Token> + use<>> {
        loop {
            self.events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let mut tokens = [None; BATCH];
        for (token, event) in tokens.iter_mut().zip(&self.events) {
            *token = Token::from_data(event.data);
        }
        Ok(tokens.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_was() {
        let tokens = [
            Token::Channel,
            Token::Listener,
            Token::Runtime,
            Token::Orphans,
            Token::Log(LogStream::Stdout),
            Token::Log(LogStream::Stderr),
            Token::Connection(0),
            Token::Connection(15),
        ];
        for token in tokens {
            assert_eq!(Token::from_data(token.to_data()), Some(token));
        }
    }
}
