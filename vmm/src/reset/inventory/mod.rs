//! The inventory: every part of a machine that its guest, or the host on its behalf,
//! can change after the snapshot. One table ([`INVENTORY`]) says of each part how it is
//! captured, put back and compared, and why; snapshot, restore, reset and
//! [`verify`](super::verify) walk it and touch nothing else.
//!
//! ```text
//!  put back, from the top of the table to its end:
//!
//!   host ─► devices ─► interrupt controllers ─► vCPUs ─► memory  │  start (at `Run`)
//!                                                                the guest stands still
//!  captured: vCPUs from the end up, because KVM finishes what is pending in a vCPU
//!  when it is asked for its run state.
//! ```
//!
//! What is not in the table, and why, is in `docs/decisions/0022`. A reset can be told to leave
//! parts out ([`Parts`]), so that a test can show that each of them is needed; the
//! product's program always says [`Parts::ALL`].

pub mod chips;
pub mod host;
pub mod start;
mod table;
pub mod vcpu;

#[cfg(test)]
mod tests;

use crate::bus::DevicePart;
use chips::ChipPart;
use host::HostPart;
use start::StartPart;
pub use table::INVENTORY;
use vcpu::VcpuPart;

/// A part of a machine's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the table has the documentation")]
pub enum Part {
    Notifications,
    SerialLine,
    Keyboard,
    Vsock,
    Net,
    Disks,
    Entropy,
    FirstPic,
    SecondPic,
    IoApic,
    ExtendedState,
    ExtendedControl,
    GeneralRegisters,
    SystemRegisters,
    LocalApic,
    Msrs,
    Timer,
    DebugRegisters,
    Events,
    RunState,
    PagesOfVcpus,
    PagesOfDevices,
    Frames,
    GenerationId,
    Clock,
    Counters,
}

impl Part {
    /// Every part, in the order of the table.
    pub const ALL: [Self; 26] = [
        Self::Notifications,
        Self::SerialLine,
        Self::Keyboard,
        Self::Vsock,
        Self::Net,
        Self::Disks,
        Self::Entropy,
        Self::FirstPic,
        Self::SecondPic,
        Self::IoApic,
        Self::ExtendedState,
        Self::ExtendedControl,
        Self::GeneralRegisters,
        Self::SystemRegisters,
        Self::LocalApic,
        Self::Msrs,
        Self::Timer,
        Self::DebugRegisters,
        Self::Events,
        Self::RunState,
        Self::PagesOfVcpus,
        Self::PagesOfDevices,
        Self::Frames,
        Self::GenerationId,
        Self::Clock,
        Self::Counters,
    ];

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// A set of parts: what a reset puts back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts(u32);

impl Parts {
    /// All of them: the only set that a guest of somebody may be reset with.
    pub const ALL: Self = Self((1 << Part::ALL.len()) - 1);

    /// This set without `part`.
    #[must_use]
    pub const fn without(self, part: Part) -> Self {
        Self(self.0 & !part.bit())
    }

    /// Whether `part` is in the set.
    #[must_use]
    pub const fn has(self, part: Part) -> bool {
        self.0 & part.bit() != 0
    }
}

/// A line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Which part.
    pub part: Part,
    /// Its name, as `verify` says it.
    pub name: &'static str,
    /// Who changes it, and why it stands where it does.
    pub why: &'static str,
    /// How it is captured, put back and compared.
    pub how: How,
}

/// How a part is captured, put back and compared, by who has it.
#[derive(Debug, Clone, Copy)]
pub enum How {
    /// The VMM, and it is empty in a snapshot.
    Host(HostPart),
    /// A device on the bus.
    Device(DevicePart),
    /// An interrupt controller of the VM.
    Chip(ChipPart),
    /// Each vCPU.
    Vcpu(VcpuPart),
    /// Guest memory: who wrote the pages that are copied back from the snapshot's
    /// file, which is also what they are compared with.
    Memory,
    /// The guest that is let go: it is given at `Run` and cannot be compared before.
    Start(StartPart),
}

/// The lines for devices, of these parts.
pub fn of_devices(parts: Parts) -> impl DoubleEndedIterator<Item = (&'static Entry, DevicePart)> {
    lines(parts, |how| match how {
        How::Device(part) => Some(part),
        _ => None,
    })
}

/// The lines for interrupt controllers, of these parts.
pub fn of_chips(parts: Parts) -> impl DoubleEndedIterator<Item = (&'static Entry, ChipPart)> {
    lines(parts, |how| match how {
        How::Chip(part) => Some(part),
        _ => None,
    })
}

/// The lines for vCPUs, of these parts.
pub fn of_vcpus(parts: Parts) -> impl DoubleEndedIterator<Item = (&'static Entry, VcpuPart)> {
    lines(parts, |how| match how {
        How::Vcpu(part) => Some(part),
        _ => None,
    })
}

/// The lines for the host's side, of these parts.
pub fn of_host(parts: Parts) -> impl DoubleEndedIterator<Item = (&'static Entry, HostPart)> {
    lines(parts, |how| match how {
        How::Host(part) => Some(part),
        _ => None,
    })
}

/// The lines for the start, of these parts.
pub fn of_start(parts: Parts) -> impl DoubleEndedIterator<Item = (&'static Entry, StartPart)> {
    lines(parts, |how| match how {
        How::Start(part) => Some(part),
        _ => None,
    })
}

fn lines<T>(
    parts: Parts,
    pick: impl Fn(How) -> Option<T>,
) -> impl DoubleEndedIterator<Item = (&'static Entry, T)> {
    INVENTORY
        .iter()
        .filter(move |entry| parts.has(entry.part))
        .filter_map(move |entry| Some((entry, pick(entry.how)?)))
}

/// What differs, in words: one sentence, or none. Long ones are cut.
pub fn difference<T: PartialEq + std::fmt::Debug>(now: &T, then: &T) -> Vec<String> {
    const MOST: usize = 1000;
    if now == then {
        return Vec::new();
    }
    vec![
        format!("{now:?}, not {then:?}")
            .chars()
            .take(MOST)
            .collect(),
    ]
}

/// As [`difference`], for registers that only the kernel looks into: where.
#[must_use]
pub fn difference_in_bytes(now: &[u8], then: &[u8]) -> Vec<String> {
    if now.len() != then.len() {
        return vec![format!("{} bytes, not {}", now.len(), then.len())];
    }
    match now.iter().zip(then).position(|(now, then)| now != then) {
        Some(at) => vec![format!(
            "at byte {at:#x}: {:#x}, not {:#x}",
            now[at], then[at]
        )],
        None => Vec::new(),
    }
}
