//! Putting a machine back to its snapshot, in place.
//!
//! ```text
//!  stop the vCPUs → host → devices → interrupt controllers → processors → pages
//! ```
//!
//! What there is to put back, in which order and why, is the table in [`inventory`].
//! Pages come last: setting a processor's registers can make KVM write guest
//! memory (its clock's page), and KVM's dirty bitmap names those pages like any other.
//! Guest time is not set here but when the guest runs again, so that it never
//! shows how long a machine waited. [`verify`] compares the result.

pub mod inventory;
pub mod verify;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use snapback_proto::control::ResetReport;

use crate::memory::{MemoryError, PageSet};
use crate::supervisor::{Live, RestoreError, Saved};
use crate::vcpu::{Order, Stop, Vcpu, VcpuError};
use inventory::{Part, Parts, chips};

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

/// Stops the guest of `live` and puts `parts` back to `saved`.
///
/// # Errors
/// When a part fails: the machine is then neither one nor the other.
pub fn reset(live: &Live, saved: &Saved, parts: Parts) -> Result<ResetReport, ResetError> {
    let begin = Instant::now();
    live.pause().map_err(ResetError::Pause)?;
    let paused = Instant::now();
    load(live, saved, parts)?;
    let loaded = Instant::now();
    let (pages, by_vcpu, by_devices) = collect(live, parts)?;
    let collected = Instant::now();
    live.memory.put_back(&pages)?;
    let end = Instant::now();
    let ns = |from: Instant, to: Instant| u64::try_from((to - from).as_nanos()).unwrap_or(u64::MAX);
    Ok(ResetReport {
        pages: pages.len(),
        pages_by_vcpu: by_vcpu,
        pages_by_devices: by_devices,
        pause_ns: ns(begin, paused),
        state_ns: ns(paused, loaded),
        hot_pages: live.memory.hot_pages(),
        collect_ns: ns(loaded, collected),
        pages_ns: ns(loaded, end),
        total_ns: ns(begin, end),
    })
}

/// Sets the parts of a stopped machine that its memory does not hold: those of the
/// VMM, of devices, interrupt controllers and vCPUs.
///
/// # Errors
/// When a part does not take its state.
pub fn load(live: &Live, saved: &Saved, parts: Parts) -> Result<(), RestoreError> {
    for (_, part) in inventory::of_host(parts) {
        (part.restore)(live);
    }
    let board = &live.board;
    board.bus().restore(&saved.devices, &board.ram, parts)?;
    chips::restore(&board.vm, &saved.interrupts, parts).map_err(RestoreError::Interrupts)?;
    for (vcpu, state) in live.vcpus.iter().zip(&saved.processors) {
        vcpu.order(Order::Load(Arc::clone(state), parts))?;
    }
    Ok(live.vcpus.iter().try_for_each(Vcpu::done)?)
}

/// Forgets which pages were written before the machine stood at its snapshot for
/// the first time, and puts them back: setting its state may have written some.
///
/// # Errors
/// As [`reset`].
pub fn settle(live: &Live) -> Result<(), ResetError> {
    let (pages, ..) = collect(live, Parts::ALL)?;
    Ok(live.memory.put_back(&pages)?)
}

/// The pages written since the last time by those of `parts` that write, and how many
/// vCPUs and devices named. Nothing is named twice: what is left out is forgotten.
fn collect(live: &Live, parts: Parts) -> Result<(PageSet, u64, u64), ResetError> {
    let (mut pages, mut left_out) = (live.memory.page_set(), live.memory.page_set());
    let named = parts.has(Part::PagesOfVcpus);
    let into = if named { &mut pages } else { &mut left_out };
    let by_vcpu = live.memory.take_guest_writes(&live.board.vm, into);
    let by_vcpu = by_vcpu.map_err(ResetError::Tracking)?;
    let named = parts.has(Part::PagesOfDevices);
    let into = if named { &mut pages } else { &mut left_out };
    let by_devices = live.memory.take_device_writes(into);
    Ok((pages, by_vcpu, by_devices))
}
