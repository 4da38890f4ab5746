//! Putting a machine back to its snapshot, in place.
//!
//! ```text
//!  stop the vCPUs → devices → interrupt controllers → processors → pages
//! ```
//!
//! Pages come last: setting a processor's registers can make KVM write guest
//! memory (its clock's page), and the dirty ring names those pages like any other.
//! Guest time is not set here but when the guest runs again, so that it never
//! shows how long a machine waited. [`verify`] compares the result.

pub mod verify;

use std::io;
use std::sync::PoisonError;
use std::time::Instant;

use snapback_proto::control::ResetReport;

use crate::memory::{MemoryError, PageSet};
use crate::supervisor::{Live, RestoreError, Saved, discard_notifications, load};
use crate::sys::dirty_ring;
use crate::vcpu::{Stop, VcpuError};

/// A machine could not be put back; it must not be used again.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// A vCPU did not stop.
    #[error("the guest cannot be stopped")]
    Pause(#[source] VcpuError),
    /// A part did not take its state.
    #[error(transparent)]
    State(#[from] RestoreError),
    /// KVM does not take the collected pages back.
    #[error("KVM cannot track the collected pages again")]
    Tracking(#[source] io::Error),
    /// A page could not be copied.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl ResetError {
    /// Why the guest stopped by itself, when that is what happened.
    #[must_use]
    pub fn guest_stopped(&self) -> Option<&Stop> {
        match self {
            Self::Pause(error) => error.guest_stopped(),
            _ => None,
        }
    }
}

/// Stops the guest of `live` and puts everything back to `saved`.
///
/// # Errors
/// When a part fails: the machine is then neither one nor the other.
pub fn reset(live: &Live, saved: &Saved) -> Result<ResetReport, ResetError> {
    let begin = Instant::now();
    live.pause().map_err(ResetError::Pause)?;
    let paused = Instant::now();
    discard_notifications(live);
    load(live, saved)?;
    let loaded = Instant::now();
    let (pages, by_vcpu, by_devices) = collect(live)?;
    live.memory.put_back(&pages)?;
    let end = Instant::now();
    let ns = |from: Instant, to: Instant| u64::try_from((to - from).as_nanos()).unwrap_or(u64::MAX);
    Ok(ResetReport {
        pages: pages.len(),
        pages_by_vcpu: by_vcpu,
        pages_by_devices: by_devices,
        pause_ns: ns(begin, paused),
        state_ns: ns(paused, loaded),
        pages_ns: ns(loaded, end),
        total_ns: ns(begin, end),
    })
}

/// Forgets which pages were written before the machine stood at its snapshot for
/// the first time, and puts them back: setting its state may have written some.
///
/// # Errors
/// As [`reset`].
pub fn settle(live: &Live) -> Result<(), ResetError> {
    let (pages, ..) = collect(live)?;
    Ok(live.memory.put_back(&pages)?)
}

/// The pages written since the last time, and how many vCPUs and devices named.
fn collect(live: &Live) -> Result<(PageSet, u64, u64), ResetError> {
    let mut pages = live.memory.page_set();
    let mut by_vcpu = 0;
    for vcpu in &live.vcpus {
        let mut dirty = vcpu.dirty().lock().unwrap_or_else(PoisonError::into_inner);
        dirty.collect();
        by_vcpu += dirty.take(&mut pages);
    }
    dirty_ring::reset_all(&live.board.vm).map_err(ResetError::Tracking)?;
    let by_devices = live.memory.take_device_writes(&mut pages);
    Ok((pages, by_vcpu, by_devices))
}
