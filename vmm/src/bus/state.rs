//! The state of every device, as it stands in a snapshot.

use serde::{Deserialize, Serialize};

use crate::devices::i8042::I8042V1;
use crate::devices::serial::{SerialRestoreError, SerialV1};
use crate::virtio::block::BlockV1;
use crate::virtio::rng::RngV1;
use crate::virtio::transport::{VirtioRestoreError, VirtioV1};
use crate::virtio::vsock::VsockV1;

/// All devices' state. Two of them are equal exactly when the guest could not
/// tell the devices apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusV1 {
    /// The serial line.
    pub serial: SerialV1,
    /// The keyboard controller.
    pub i8042: I8042V1,
    /// The vsock.
    pub vsock: VirtioV1<VsockV1>,
    /// The disks, in order.
    pub disks: Vec<VirtioV1<BlockV1>>,
    /// The entropy device.
    pub rng: VirtioV1<RngV1>,
}

/// Why a machine cannot be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{devices} virtio devices, at most {} fit", super::layout::MAX_VIRTIO)]
pub struct TooManyDevices {
    /// How many were asked for.
    pub devices: usize,
}

/// The devices cannot be saved: work is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("virtio device {device} has work in flight")]
pub struct NotQuiet {
    /// Index of the first device that is not quiet.
    pub device: usize,
}

/// Why a state was refused. The bus is then partly restored: the machine has to
/// be thrown away.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The serial line's state.
    #[error("state of the serial line")]
    Serial(#[source] SerialRestoreError),
    /// The vsock's state.
    #[error("state of the vsock")]
    Vsock(#[source] VirtioRestoreError),
    /// A disk's state.
    #[error("state of disk {index}")]
    Disk {
        /// Its number, from 0.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: VirtioRestoreError,
    },
    /// The entropy device's state.
    #[error("state of the entropy device")]
    Rng(#[source] VirtioRestoreError),
    /// The snapshot's machine has another number of disks.
    #[error("the snapshot has {snapshot} disks, this machine {machine}")]
    Disks {
        /// Disks in the snapshot.
        snapshot: usize,
        /// Disks of this machine.
        machine: usize,
    },
}
