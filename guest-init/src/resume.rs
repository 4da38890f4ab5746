//! Making a restored guest one of its own.
//!
//! Every microVM of a snapshot starts with the same generator state, a clock that
//! stands at the snapshot, and the same names. All are put right before anything of
//! a request reaches the function; only then is the resume confirmed.

use std::io;

use rustix::time::{ClockId, Timespec, clock_settime};
use snapback_proto::guest::{ENTROPY_LEN, Gather, Identity, Resume};

use crate::gather;
use crate::identity::IdentityFiles;
use crate::kernel_log::KernelLog;
use crate::mounts;
use crate::sys::entropy::EntropyPool;

const NANOSECONDS: u64 = 1_000_000_000;

/// A guest could not be made unlike the others of its snapshot. It must not run.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The generator was not reseeded.
    #[error("the kernel's random number generator cannot be reseeded")]
    Reseed(#[source] io::Error),
    /// The clock was not set.
    #[error("the wall clock cannot be set to {wall_clock_ns} ns since the epoch")]
    Clock {
        /// What it was to be set to.
        wall_clock_ns: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The machine did not get its names.
    #[error("the machine's names cannot be set")]
    Identity(#[source] io::Error),
}

/// What of the machine is renewed with each request. The guest's kernel in a
/// microVM; guest-init run elsewhere must leave its host's clock alone.
pub trait Machine {
    /// Mixes fresh entropy in and reseeds the generator.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn reseed(&mut self, fresh: &[u8; ENTROPY_LEN]) -> io::Result<()>;

    /// Sets the wall clock.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_wall_clock(&mut self, ns_since_epoch: u64) -> io::Result<()>;

    /// Gives the machine its names.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_identity(&mut self, identity: &Identity) -> io::Result<()>;

    /// Says how much `/tmp` may hold, in MiB.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn bound_tmp(&mut self, mib: u32) -> io::Result<()>;

    /// Moves pages of processes next to each other; how many.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn gather(&mut self, pages: &Gather) -> io::Result<u32>;

    /// Whether the kernel has killed a process for want of memory since the last
    /// time that somebody asked.
    fn ran_out_of_memory(&mut self) -> bool;
}

/// The kernel that this process runs on.
#[derive(Debug)]
pub struct GuestKernel {
    pool: EntropyPool,
    identity: IdentityFiles,
    log: KernelLog,
}

impl GuestKernel {
    /// Opens what a resume needs, so that a resume opens nothing.
    ///
    /// # Errors
    /// When a file cannot be opened or put in place.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            pool: EntropyPool::open()?,
            identity: IdentityFiles::put_in_place()?,
            log: KernelLog::from_now()?,
        })
    }
}

impl Machine for GuestKernel {
    fn reseed(&mut self, fresh: &[u8; ENTROPY_LEN]) -> io::Result<()> {
        self.pool.reseed(fresh)
    }

    fn set_wall_clock(&mut self, ns_since_epoch: u64) -> io::Result<()> {
        let part = |ns: u64| i64::try_from(ns).map_err(io::Error::other);
        let time = Timespec {
            tv_sec: part(ns_since_epoch / NANOSECONDS)?,
            tv_nsec: part(ns_since_epoch % NANOSECONDS)?,
        };
        Ok(clock_settime(ClockId::Realtime, time)?)
    }

    fn set_identity(&mut self, identity: &Identity) -> io::Result<()> {
        self.identity.give(identity)
    }

    fn bound_tmp(&mut self, mib: u32) -> io::Result<()> {
        mounts::bound_tmp(mib)
    }

    fn gather(&mut self, pages: &Gather) -> io::Result<u32> {
        gather::gather(pages)
    }

    fn ran_out_of_memory(&mut self) -> bool {
        self.log.any(is_oom_kill)
    }
}

/// Whether a message of the kernel says that it has killed a process for want of
/// memory.
fn is_oom_kill(message: &str) -> bool {
    message.starts_with("Out of memory: Killed process")
}

/// Does all that a resume asks for.
///
/// # Errors
/// When any part of it fails: then the resume must not be confirmed.
pub fn renew(machine: &mut dyn Machine, resume: &Resume) -> Result<(), ResumeError> {
    machine
        .reseed(&resume.entropy)
        .map_err(ResumeError::Reseed)?;
    machine
        .set_identity(&resume.identity)
        .map_err(ResumeError::Identity)?;
    // Last: as little time as possible passes between this and the function.
    set_clock(machine, resume.wall_clock_ns)
}

/// Sets the wall clock.
///
/// # Errors
/// When the kernel refuses.
pub fn set_clock(machine: &mut dyn Machine, wall_clock_ns: u64) -> Result<(), ResumeError> {
    let set = machine.set_wall_clock(wall_clock_ns);
    set.map_err(|source| ResumeError::Clock {
        wall_clock_ns,
        source,
    })
}
