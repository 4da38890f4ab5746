//! Putting a machine back to its snapshot, in place.
//!
//! ```text
//!  stop the vCPUs → host → devices → interrupt controllers → processors → pages
//! ```
//!
//! What there is to put back, in which order and why, is the table in [`inventory`].
//! Pages come last: setting a processor's registers can make KVM write guest
//! memory (its clock's page), and KVM's dirty bitmap names those pages like any other.
//! Some registers of a vCPU that is alone wait in its run page, and are taken when it is
//! entered ([`run_page`]); what is written then is of the next life.
//! Guest time is not set here but when the guest runs again, so that it never
//! shows how long a machine waited. [`verify`] compares the result.

pub mod inventory;
pub mod verify;

use std::io;
use std::time::Instant;

use snapback_proto::control::ResetReport;

use crate::arch::x86_64::run_page;
use crate::memory::{MemoryError, PageSet};
use crate::supervisor::{Live, RestoreError, Saved};
use crate::vcpu::{Stop, VcpuError};
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
    /// More pages were written than may be copied.
    #[error("{pages} pages were written, more than are to be copied back")]
    OverBudget {
        /// How many.
        pages: u64,
    },
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

/// Stops the guest of `live` and puts `parts` back to `saved`, unless more than
/// `page_budget` pages were written.
///
/// # Errors
/// When a part fails, or the budget is not enough: the machine is then neither one nor
/// the other.
pub fn reset(
    live: &mut Live,
    saved: &Saved,
    parts: Parts,
    page_budget: u64,
) -> Result<ResetReport, ResetError> {
    let begin = Instant::now();
    live.pause().map_err(ResetError::Pause)?;
    live.board.ahead.give_up();
    let paused = Instant::now();
    let steps = load(live, saved, parts, Registers::AtEntrance)?;
    let loaded = Instant::now();
    let (pages, by_vcpu, by_devices) = collect(live, parts)?;
    let collected = Instant::now();
    if pages.len() > page_budget {
        return Err(ResetError::OverBudget { pages: pages.len() });
    }
    live.memory.put_back(&pages)?;
    let end = Instant::now();
    Ok(ResetReport {
        pages: pages.len(),
        pages_by_vcpu: by_vcpu,
        pages_by_devices: by_devices,
        pause_ns: ns(begin, paused),
        state_ns: ns(paused, loaded),
        host_ns: steps.host_ns,
        devices_ns: steps.devices_ns,
        interrupts_ns: steps.interrupts_ns,
        processors_ns: steps.processors_ns,
        hot_pages: live.memory.hot_pages(),
        collect_ns: ns(loaded, collected),
        pages_ns: ns(loaded, end),
        total_ns: ns(begin, end),
    })
}

fn ns(from: Instant, to: Instant) -> u64 {
    u64::try_from((to - from).as_nanos()).unwrap_or(u64::MAX)
}

/// What setting the parts of each owner took, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    /// The VMM.
    pub host_ns: u64,
    /// Devices.
    pub devices_ns: u64,
    /// Interrupt controllers.
    pub interrupts_ns: u64,
    /// vCPUs.
    pub processors_ns: u64,
}

/// When a vCPU takes those of its registers that it can take at its entrance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registers {
    /// At once: a state that was not set before may be refused, and is then to blame.
    Now,
    /// When it is entered, where that makes no difference.
    AtEntrance,
}

/// Sets the parts of a stopped machine that its memory does not hold: those of the
/// VMM, of devices, interrupt controllers and vCPUs.
///
/// # Errors
/// When a part does not take its state.
pub fn load(
    live: &mut Live,
    saved: &Saved,
    parts: Parts,
    registers: Registers,
) -> Result<Steps, RestoreError> {
    let begin = Instant::now();
    for (_, part) in inventory::of_host(parts) {
        (part.restore)(live);
    }
    let host = Instant::now();
    let board = &live.board;
    board.bus().restore(&saved.devices, &board.ram, parts)?;
    let devices = Instant::now();
    chips::restore(&board.vm, &saved.interrupts, parts).map_err(RestoreError::Interrupts)?;
    let interrupts = Instant::now();
    let alone = live.vcpus.len() == 1;
    for (vcpu, state) in live.vcpus.iter_mut().zip(&saved.processors) {
        let at_entrance = registers == Registers::AtEntrance
            && alone
            && run_page::suits(state, &saved.interrupts);
        vcpu.load(state, parts, alone, at_entrance)?;
    }
    Ok(Steps {
        host_ns: ns(begin, host),
        devices_ns: ns(host, devices),
        interrupts_ns: ns(devices, interrupts),
        processors_ns: ns(interrupts, Instant::now()),
    })
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
    let memory = &live.memory;
    let mut pages = memory.page_set();
    memory
        .take_guest_writes(&live.board.vm, &mut pages)
        .map_err(ResetError::Tracking)?;
    let by_vcpu = pages.len();
    if !parts.has(Part::PagesOfVcpus) {
        pages = memory.page_set();
    }
    let by_devices = if parts.has(Part::PagesOfDevices) {
        memory.take_device_writes(&mut pages)
    } else {
        memory.take_device_writes(&mut memory.page_set())
    };
    Ok((pages, by_vcpu, by_devices))
}
