//! What the event loop waits for: one epoll instance, level-triggered.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

/// Most events of one wait; the rest comes with the next.
const BATCH: usize = 16;

/// Who an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The invocation channel.
    Channel,
    /// The Runtime API's listener.
    Listener,
    /// The end of any process that PID 1 has to reap.
    Orphans,
    /// The end of a process, by its place.
    Process(u8),
    /// An output stream, by its place.
    Log(u8),
    /// A telemetry subscriber, by its place.
    Subscriber(u8),
    /// A connection to the Runtime API, by its slot.
    Connection(u8),
}

/// The kind of a token is in its data's second byte, the place in its first.
const PLACE: u64 = 0xff;
const fn kind(number: u64) -> u64 {
    number << 8
}

impl Token {
    fn to_data(self) -> EventData {
        EventData::new_u64(match self {
            Self::Channel => kind(0),
            Self::Listener => kind(1),
            Self::Orphans => kind(2),
            Self::Process(place) => kind(3) | u64::from(place),
            Self::Log(place) => kind(4) | u64::from(place),
            Self::Subscriber(place) => kind(5) | u64::from(place),
            Self::Connection(slot) => kind(6) | u64::from(slot),
        })
    }

    fn from_data(data: EventData) -> Option<Self> {
        let place = u8::try_from(data.u64() & PLACE).ok()?;
        Some(match data.u64() >> 8 {
            0 => Self::Channel,
            1 => Self::Listener,
            2 => Self::Orphans,
            3 => Self::Process(place),
            4 => Self::Log(place),
            5 => Self::Subscriber(place),
            6 => Self::Connection(place),
            _ => return None,
        })
    }
}

/// What a descriptor is watched for. A failure is always told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// Something to read, or its end.
    pub read: bool,
    /// Room to write.
    pub write: bool,
}

impl Interest {
    /// Something to read, or its end.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    /// Room to write.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };

    /// Something to read, with or without room to write.
    #[must_use]
    pub const fn writing(write: bool) -> Self {
        Self { read: true, write }
    }

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
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

    /// Waits until something happens and says for whom; nobody when `limit` has
    /// passed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(
        &mut self,
        limit: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = Token> + use<>> {
        // A limit that does not fit is as good as none.
        let timespec = limit.and_then(|limit| Timespec::try_from(limit).ok());
        self.wait_for(timespec.as_ref())
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
            Token::Orphans,
            Token::Process(0),
            Token::Process(10),
            Token::Log(1),
            Token::Subscriber(2),
            Token::Connection(0),
            Token::Connection(255),
        ];
        for token in tokens {
            assert_eq!(Token::from_data(token.to_data()), Some(token));
        }
    }
}
