//! The threads that answer faults: all wait on one epoll of all userfaultfds.
//!
//! What fails while one microVM is served ends that microVM. A thread that ends in any
//! other way than by being told to is the end of the pager: a fault may be lost with it,
//! so every microVM in its care is ended, and none is taken any more.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::event::{EventfdFlags, eventfd};
use snapback_proto::control::FaultRange;
use snapback_vmm::sys::uffd::{Fault, MAX_EVENTS, Uffd};

use super::PAGE;
use super::ahead::Arranging;
use super::cache::MemoryCache;
use super::prefetch::Prefetches;
use super::working_set::WorkingSet;

/// The epoll key of the eventfd that ends the threads.
const STOP: u64 = 0;
/// The epoll key of the prefetches.
const PREFETCH: u64 = 1;

/// A microVM's memory could not be put under the pager's care.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// A range is not one of the snapshot's memory.
    #[error("the VMM reported a range of {length} bytes at offset {offset} that is not there")]
    Range {
        /// Where it would begin in the memory, in bytes.
        offset: u64,
        /// Its length, in bytes.
        length: u64,
    },
    /// What the VMM sent is no userfaultfd.
    #[error("the VMM sent a descriptor that is no userfaultfd")]
    NotAUserfaultfd,
    /// A thread of the pager ended: missing pages do not come any more.
    #[error("the pager has ended")]
    Ended,
    /// The descriptor could not be used.
    #[error("the userfaultfd cannot be watched")]
    Io(#[from] io::Error),
}

/// One microVM's memory.
struct Client {
    uffd: Uffd,
    ranges: Vec<FaultRange>,
    cache: Arc<MemoryCache>,
    failed: Box<dyn Fn(io::Error) + Send + Sync>,
    faults: AtomicU64,
}

struct Shared {
    epoll: OwnedFd,
    stop: OwnedFd,
    prefetches: Prefetches,
    clients: Mutex<HashMap<u64, Arc<Client>>>,
    next_key: AtomicU64,
    /// Threads that run.
    running: AtomicUsize,
    /// A thread ended that was not told to.
    ended: AtomicBool,
}

/// A page cannot be had any more: the pager's own end.
#[derive(Debug, thiserror::Error)]
#[error("the pager has ended")]
struct PagerEnded;

/// A page could not be had: a bug.
#[derive(Debug, thiserror::Error)]
#[error("the pager failed at it")]
struct PagerFailed;

/// Notices how a thread ends.
struct Watch<'a> {
    shared: &'a Shared,
    was_told: bool,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.shared.running.fetch_sub(1, Ordering::Relaxed);
        if !self.was_told {
            self.shared.end_all();
        }
    }
}

/// The pager threads. They end when this is dropped.
pub struct Pager {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A microVM's memory in the pager's care, until this is dropped.
pub struct Registration {
    shared: Arc<Shared>,
    client: Arc<Client>,
    key: u64,
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pager")
            .field("threads", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registration")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Pager {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread or a descriptor cannot be had.
    pub fn start(threads: usize) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let data = epoll::EventData::new_u64(STOP);
        epoll::add(&epoll, &stop, data, epoll::EventFlags::IN)?;
        let prefetches = Prefetches::new()?;
        let data = epoll::EventData::new_u64(PREFETCH);
        epoll::add(&epoll, &prefetches, data, epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared {
            epoll,
            stop,
            prefetches,
            clients: Mutex::default(),
            next_key: AtomicU64::new(PREFETCH + 1),
            running: AtomicUsize::new(threads),
            ended: AtomicBool::new(false),
        });
        let mut pager = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("pager-{number}"))
                .spawn(move || {
                    let mut watch = Watch {
                        shared: &shared,
                        was_told: false,
                    };
                    watch.was_told = shared.run();
                })?;
            pager.threads.push(thread);
        }
        Ok(pager)
    }

    /// Fills the faults of a microVM from now on. `ranges` come from its VMM
    /// process and are not trusted. `failed` is called when a page cannot be
    /// had; the microVM has to be killed then.
    ///
    /// # Errors
    /// When a range or the descriptor is not what it should be.
    pub fn register(
        &self,
        uffd: OwnedFd,
        ranges: Vec<FaultRange>,
        cache: Arc<MemoryCache>,
        failed: impl Fn(io::Error) + Send + Sync + 'static,
    ) -> Result<Registration, RegisterError> {
        for range in &ranges {
            let end = range.offset.checked_add(range.length);
            let aligned = (range.address | range.length | range.offset) % PAGE == 0;
            let mapped = range.address.checked_add(range.length).is_some();
            if !aligned || !mapped || end.is_none_or(|end| end > cache.len()) {
                let (offset, length) = (range.offset, range.length);
                return Err(RegisterError::Range { offset, length });
            }
        }
        if !is_userfaultfd(&uffd)? {
            return Err(RegisterError::NotAUserfaultfd);
        }
        let uffd = Uffd::from_owned_fd(uffd)?;
        let key = self.shared.next_key.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(Client {
            uffd,
            ranges,
            cache,
            failed: Box::new(failed),
            faults: AtomicU64::new(0),
        });
        self.shared.clients().insert(key, Arc::clone(&client));
        let registration = Registration {
            shared: Arc::clone(&self.shared),
            client: Arc::clone(&client),
            key,
        };
        let data = epoll::EventData::new_u64(key);
        epoll::add(
            &self.shared.epoll,
            &client.uffd,
            data,
            epoll::EventFlags::IN,
        )
        .map_err(io::Error::from)?;
        // Whoever ends the pager says so before it looks for microVMs.
        if self.shared.ended.load(Ordering::SeqCst) {
            return Err(RegisterError::Ended);
        }
        Ok(registration)
    }
}

impl Pager {
    /// How many threads answer faults; none when the pager has ended.
    #[must_use]
    pub fn threads(&self) -> usize {
        if self.shared.ended.load(Ordering::SeqCst) {
            return 0;
        }
        self.shared.running.load(Ordering::Relaxed)
    }

    /// Brings a working set into a cache, between faults. A page that cannot be
    /// had is left out: whoever needs it has a fault, and that one's failure.
    pub fn prefetch(&self, cache: &Arc<MemoryCache>, set: &WorkingSet) {
        self.shared.prefetches.add(cache, set);
    }
}

impl Pager {
    /// Brings all of a snapshot's memory, between faults and after what is being
    /// prefetched. A page that cannot be had leaves it incomplete.
    pub fn complete(&self, cache: &Arc<MemoryCache>) {
        self.shared.prefetches.add_rest(cache);
    }

    /// Arranges a memory that is whole, between faults and after everything else.
    pub fn arrange(&self, work: Arranging) {
        self.shared.prefetches.add_arranging(work);
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // The counter stays set, so every thread sees it.
        let _ = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Registration {
    /// Faults of this microVM that were answered so far.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.client.faults.load(Ordering::Relaxed)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.clients().remove(&self.key);
        self.shared.forget(&self.client);
    }
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, HashMap<u64, Arc<Client>>> {
        // The map is whole whenever the lock is free.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, client: &Client) {
        // It may be forgotten already.
        let _ = epoll::delete(&self.epoll, &client.uffd);
    }

    /// The pager is over, and with it whoever needs it.
    fn end_all(&self) {
        self.ended.store(true, Ordering::SeqCst);
        tracing::error!("a pager thread ended: all microVMs that need it end, too");
        let clients = std::mem::take(&mut *self.clients());
        for client in clients.values() {
            self.forget(client);
            (client.failed)(io::Error::other(PagerEnded));
        }
    }

    /// Serves until it is told to end, which is true, or cannot.
    fn run(&self) -> bool {
        let mut events = Vec::with_capacity(16);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "the pager cannot wait");
                    return false;
                }
            }
            for event in &events {
                let key = event.data.u64();
                if key == STOP {
                    return true;
                }
                if key == PREFETCH {
                    self.prefetches.work();
                    continue;
                }
                let client = self.clients().get(&key).map(Arc::clone);
                if let Some(client) = client {
                    let error_flags = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
                    let flags = event.flags;
                    self.serve(&client, flags.intersects(error_flags));
                }
            }
        }
    }

    fn serve(&self, client: &Client, broken: bool) {
        let served = if broken {
            Err(io::ErrorKind::BrokenPipe.into())
        } else {
            // A panic is a bug; it must not end the microVMs beside this one. What is
            // left behind is whole: a page is in the memory or it is not.
            let served = catch_unwind(AssertUnwindSafe(|| client.serve()));
            served.unwrap_or_else(|_| Err(io::Error::other(PagerFailed)))
        };
        if let Err(error) = served {
            self.forget(client);
            (client.failed)(error);
        }
    }
}

impl Client {
    /// Answers the faults that wait now.
    fn serve(&self) -> io::Result<()> {
        let mut faults = [Fault::default(); MAX_EVENTS];
        let count = self.uffd.read_events(&mut faults)?;
        for fault in &faults[..count] {
            self.faults.fetch_add(1, Ordering::Relaxed);
            let (range, offset) = self.locate(fault.address)?;
            let filled = self.cache.fill(offset)?;
            // The part of what is filled now that this range shows.
            let start = filled.start.max(range.offset);
            let end = filled.end.min(range.offset + range.length);
            self.uffd
                .wake(range.address + (start - range.offset), end - start)?;
        }
        Ok(())
    }

    fn locate(&self, address: u64) -> io::Result<(&FaultRange, u64)> {
        let inside = |range: &&FaultRange| {
            address >= range.address && address - range.address < range.length
        };
        let range = self
            .ranges
            .iter()
            .find(inside)
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok((range, range.offset + (address - range.address)))
    }
}

/// Whether a descriptor from a VMM process is what it should be: anything else
/// could make a pager thread wait forever.
fn is_userfaultfd(fd: &OwnedFd) -> io::Result<bool> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))?;
    Ok(link.as_os_str() == "anon_inode:[userfaultfd]")
}
