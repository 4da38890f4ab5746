//! virtio devices (VIRTIO 1.2).
//!
//! ```text
//!  bus ──► transport (registers, status, interrupts) ──► device (block, vsock, …)
//!               │                                            │
//!               └──────────────► queue ◄─────────────────────┘
//! ```
//!
//! The [`transport`] owns the queues and everything that is alike in all devices; a
//! [`VirtioDevice`] is asked to process a queue, with access to the queues and to
//! guest memory, and says what became of it. What the guest writes is checked where
//! it is read, once: a driver that breaks the rules gets `DEVICE_NEEDS_RESET`.
//!
//! Work per call is bounded. A device that reaches its bound answers
//! [`Progress::More`] and is called again after everybody else had a turn.

pub mod block;
pub mod net;
pub mod queue;
pub mod rng;
pub mod transport;
pub mod vsock;

#[cfg(test)]
pub(crate) mod testing;

use std::fmt::Debug;

use crate::memory::GuestRam;
use crate::poll::Ready;
use queue::{QueueError, VirtQueue};

/// Feature bit: the driver may use descriptors that point at descriptor tables.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature bit: notifications are suppressed by index instead of by flag.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Feature bit: VIRTIO 1.0 or later; a driver without it is refused.
pub const F_VERSION_1: u64 = 1 << 32;
/// What every device of ours offers.
pub const COMMON_FEATURES: u64 = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1;

/// Whether a device did all there was to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left that could be done now.
    Done,
    /// The bound for one call was reached.
    More,
}

/// The device cannot go on, in a way that only a device reset mends: the driver broke
/// the rules, or the host's end of the device fails.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The host's end cannot be used.
    #[error("the host's end of the device")]
    Host(#[source] std::io::Error),
    /// A ring or a descriptor chain is broken.
    #[error("queue {queue}")]
    Queue {
        /// Which queue.
        queue: usize,
        /// How it is broken.
        #[source]
        source: QueueError,
    },
    /// The device needs a queue that the driver has not set up.
    #[error("queue {queue} is missing")]
    Missing {
        /// Which queue.
        queue: usize,
    },
}

/// Why a device's own state was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeviceRestoreError {
    /// A disk of another size stands behind the device.
    #[error("the snapshot's disk has {snapshot} sectors, this one {machine}")]
    Capacity {
        /// Sectors in the snapshot.
        snapshot: u64,
        /// Sectors of this disk.
        machine: u64,
    },
    /// A disk of which the snapshot holds only a part.
    #[error("{clusters} clusters of the snapshot's disk are not in its base")]
    OwnClusters {
        /// How many.
        clusters: u64,
    },
    /// What an earlier life wrote to a disk cannot be dropped.
    #[error("the disk's overlay cannot be emptied")]
    Overlay(#[source] rustix::io::Errno),
    /// A net device of another address.
    #[error("the snapshot's address is {snapshot:x?}, this machine's {machine:x?}")]
    Address {
        /// Address in the snapshot.
        snapshot: [u8; 6],
        /// Address of this device.
        machine: [u8; 6],
    },
    /// The tap cannot be made ready for the snapshot's driver.
    #[error("the tap cannot be made ready")]
    Tap(#[source] rustix::io::Errno),
    /// More connections than the device has room for.
    #[error("{connections} connections")]
    TooManyConnections {
        /// Connections in the state.
        connections: usize,
    },
    /// A connection that cannot exist.
    #[error("connection {guest_port} -> {host_port} is impossible")]
    Connection {
        /// Port in the guest.
        guest_port: u32,
        /// Port on the host.
        host_port: u32,
    },
}

/// A device behind the [`transport`].
pub trait VirtioDevice: Debug + Send {
    /// The device's own state in a snapshot.
    type State: Debug + Clone + PartialEq + Eq;

    /// The largest size of each queue, each a power of two.
    const QUEUE_SIZES: &'static [u16];

    /// Its virtio device id (section 5).
    fn device_id(&self) -> u32;

    /// Everything it offers.
    fn features(&self) -> u64;

    /// Reads its configuration space.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver is ready and accepted `features`.
    fn activate(&mut self, features: u64);

    /// The driver reset the device, which was [muted](Self::mute), or another state is about
    /// to be put in the place of its own. It is as new, but for what it waits for: it is
    /// muted or activated afterwards.
    fn reset(&mut self);

    /// The driver put something into queue `index`, or may have.
    ///
    /// # Errors
    /// [`DeviceError`] when the driver broke the rules; the device then needs a reset.
    fn process(
        &mut self,
        index: usize,
        queues: &mut [VirtQueue],
        ram: &GuestRam,
    ) -> Result<Progress, DeviceError>;

    /// Host descriptors of the device (see [`crate::poll`]) are ready, or may be; with
    /// none named, its host side was changed. What it leaves at its bound counts as
    /// queue 0's. Only called while the driver is live.
    ///
    /// # Errors
    /// As [`VirtioDevice::process`].
    fn host_ready(
        &mut self,
        _ready: &[Ready],
        _queues: &mut [VirtQueue],
        _ram: &GuestRam,
    ) -> Result<Progress, DeviceError> {
        Ok(Progress::Done)
    }

    /// Wants to know nothing of its host descriptors any more, until it is activated
    /// or restored: the driver is not live, and nothing could be done.
    fn mute(&mut self) {}

    /// Whether the device has no work in flight.
    fn is_quiet(&self) -> bool;

    /// Its state; only meaningful while it is quiet.
    fn save(&self) -> Self::State;

    /// Puts the device into `state`, which may be hostile.
    ///
    /// # Errors
    /// [`DeviceRestoreError`] when this device cannot be in that state.
    fn restore(&mut self, state: &Self::State) -> Result<(), DeviceRestoreError>;
}

/// A read of a configuration space: what lies outside it is zero.
pub(crate) fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let source = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..));
    for (byte, value) in data.iter_mut().zip(source.unwrap_or_default()) {
        *byte = *value;
    }
}
