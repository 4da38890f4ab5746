//! Waiting for the host's ends of devices: sockets, taps.
//!
//! ```text
//!  device ── HostFd::want (when its interest changes) ──► epoll ◄── poll ── supervisor
//!    ▲                                                                         │
//!    └── host_ready(&[Ready]) ◄── Bus::host_ready ◄── HostPoll::ready ◄────────┘
//! ```
//!
//! One epoll instance for a whole machine: waiting costs nothing for descriptors
//! that are idle, however many there are. A device gets a [`DevicePoll`] when it is
//! built and makes a [`HostFd`] of each descriptor, under a number of its own; it
//! says what it wants to know of it, and says so again only when that changes. The
//! supervisor polls the epoll descriptor beside its own ones and hands what is ready
//! to the bus, which hands it to the device.
//!
//! Two rules keep a vCPU thread's device reset and the supervisor's wait apart. A
//! [`HostFd`] leaves the epoll instance before it is closed, so no descriptor is ever
//! waited for under the number of another, even if the agent kept a duplicate. And a
//! device never uses a number twice, so that what became ready before the reset, and
//! is only handed over after it, belongs to nothing. Being ready is a hint in any
//! case: the descriptors do not block.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use crate::sys::fds::set_nonblocking;

/// Most descriptors that are handed over at once; the kernel lets the others have
/// their turn the next time.
const BATCH: usize = 64;
/// Bits of a token that name the descriptor; the ones above name the device.
const ID_BITS: u32 = 56;

/// What a device wants to know of a descriptor.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// When it can be read.
    pub readable: bool,
    /// When it can be written.
    pub writable: bool,
    /// When it has ended in both directions, which is reported with the others too.
    pub hangup: bool,
}

impl Interest {
    /// Nothing.
    pub const NONE: Self = Self {
        readable: false,
        writable: false,
        hangup: false,
    };

    /// Only whether it can be read.
    pub const READABLE: Self = Self {
        readable: true,
        ..Self::NONE
    };

    /// Without any flag the kernel still reports errors and the end of both
    /// directions.
    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.readable);
        flags.set(EventFlags::OUT, self.writable);
        flags
    }
}

/// A descriptor of a device is ready, or was. An error or a hangup counts as both:
/// reading or writing tells which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// Index of the device on the bus.
    pub device: usize,
    /// The device's number of the descriptor.
    pub id: u64,
    /// Reading does not block.
    pub readable: bool,
    /// Writing does not block.
    pub writable: bool,
    /// Both directions have ended; what was sent before can still be read.
    pub hangup: bool,
}

/// The supervisor's side.
#[derive(Debug)]
pub struct HostPoll(Arc<OwnedFd>);

impl HostPoll {
    /// Waits for nothing yet.
    ///
    /// # Errors
    /// When the kernel has no epoll instance to give.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(epoll::create(CreateFlags::CLOEXEC)?)))
    }

    /// For the device with this index on the bus.
    #[must_use]
    pub fn device(&self, index: u8) -> DevicePoll {
        DevicePoll {
            epoll: Arc::clone(&self.0),
            device: index,
        }
    }

    /// How many devices and descriptors there are.
    #[cfg(test)]
    pub(crate) fn users(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }

    /// What is ready now, at most a batch of it. Does not wait.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn ready(&self) -> io::Result<Vec<Ready>> {
        let mut events = Vec::with_capacity(BATCH);
        match epoll::wait(
            &self.0,
            spare_capacity(&mut events),
            Some(&Timespec::default()),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(events.iter().map(ready_of).collect())
    }
}

impl AsFd for HostPoll {
    /// Readable when something is ready.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn ready_of(event: &epoll::Event) -> Ready {
    let (token, flags) = (event.data.u64(), event.flags);
    let over = flags.intersects(EventFlags::ERR | EventFlags::HUP);
    Ready {
        // Eight bits are left.
        device: usize::try_from(token >> ID_BITS).unwrap_or(usize::MAX),
        id: token & ((1 << ID_BITS) - 1),
        readable: over || flags.contains(EventFlags::IN),
        writable: over || flags.contains(EventFlags::OUT),
        hangup: flags.contains(EventFlags::HUP),
    }
}

/// A device's side.
#[derive(Debug, Clone)]
pub struct DevicePoll {
    epoll: Arc<OwnedFd>,
    device: u8,
}

impl DevicePoll {
    /// Takes over `fd` and makes it non-blocking. Nothing is waited for yet. The
    /// device has never used `id` before; it is below 2⁵⁶.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking.
    pub fn adopt(&self, fd: OwnedFd, id: u64) -> io::Result<HostFd> {
        set_nonblocking(&fd)?;
        Ok(HostFd {
            epoll: Arc::clone(&self.epoll),
            token: u64::from(self.device) << ID_BITS | id & ((1 << ID_BITS) - 1),
            fd,
            interest: Interest::NONE,
        })
    }
}

/// A host's descriptor that a device owns. Closed when dropped.
#[derive(Debug)]
pub struct HostFd {
    epoll: Arc<OwnedFd>,
    token: u64,
    fd: OwnedFd,
    interest: Interest,
}

impl HostFd {
    /// Says what to wait for from now on; free when that is what it was.
    ///
    /// # Errors
    /// When the kernel's limit of descriptors waited for is reached, or the
    /// descriptor cannot be waited for.
    pub fn want(&mut self, interest: Interest) -> io::Result<()> {
        if interest == self.interest {
            return Ok(());
        }
        let data = EventData::new_u64(self.token);
        if interest == Interest::NONE {
            // Without flags it would still report that its other end is gone, over
            // and over.
            epoll::delete(&self.epoll, &self.fd)?;
        } else if self.interest == Interest::NONE {
            epoll::add(&self.epoll, &self.fd, data, interest.flags())?;
        } else {
            epoll::modify(&self.epoll, &self.fd, data, interest.flags())?;
        }
        self.interest = interest;
        Ok(())
    }

    /// What is waited for.
    #[must_use]
    pub fn interest(&self) -> Interest {
        self.interest
    }
}

impl AsFd for HostFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for HostFd {
    fn drop(&mut self) {
        // Before it is closed: see above. It is known to the kernel, so this works.
        let _ = self.want(Interest::NONE);
    }
}
