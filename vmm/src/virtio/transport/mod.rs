//! virtio over MMIO, version 2 (VIRTIO 1.2, sections 3.1 and 4.2).
//!
//! * [`Transport`]: a device with its registers, queues and interrupts.
//! * `status`: which steps of initialisation the driver may take (section 2.1).
//! * `registers`: the window's layout.
//! * `state`: what of it stands in a snapshot.

mod device;
mod registers;
mod state;
mod status;
#[cfg(test)]
mod tests;

use std::fmt::Debug;

pub use device::Transport;
pub use state::{TransportV1, VirtioRestoreError, VirtioV1};

use crate::bus::{Effects, Lines};
use crate::memory::GuestRam;
use crate::poll::Ready;

/// What the work of a device asks of the machine. Which line its interrupt is, only
/// the bus knows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[must_use = "the guest waits for its interrupt"]
pub struct Signals {
    /// Pulse the device's interrupt line.
    pub interrupt: bool,
    /// The device reached its bound with work left.
    pub more_work: bool,
}

impl Signals {
    /// The effects, for a device on interrupt line `gsi`.
    pub fn effects(self, gsi: u32) -> Effects {
        Effects {
            interrupts: if self.interrupt {
                Lines::one(gsi)
            } else {
                Lines::NONE
            },
            ended: None,
            more_work: self.more_work,
        }
    }

    fn merge(&mut self, other: Signals) {
        self.interrupt |= other.interrupt;
        self.more_work |= other.more_work;
    }
}

/// What the bus needs of a virtio-mmio device, whatever is behind it.
pub trait MmioDevice: Debug {
    /// The guest reads at `offset` in the window.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes at `offset` in the window.
    fn write(&mut self, offset: u64, data: &[u8], ram: &GuestRam) -> Signals;

    /// The guest put something into queue `queue`.
    fn notify(&mut self, queue: usize, ram: &GuestRam) -> Signals;

    /// Goes on where the device stopped at its bound.
    fn continue_work(&mut self, ram: &GuestRam) -> Signals;

    /// Host descriptors of the device are ready; with none named, its host side was
    /// changed.
    fn host_ready(&mut self, ready: &[Ready], ram: &GuestRam) -> Signals;

    /// Whether no work is in flight.
    fn is_quiet(&self) -> bool;
}
