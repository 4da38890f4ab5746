//! The state of every device, as it stands in a snapshot.

use std::io;

use serde::{Deserialize, Serialize};

use crate::devices::i8042::I8042V1;
use crate::devices::serial::{SerialRestoreError, SerialV1};
use crate::virtio::block::BlockV1;
use crate::virtio::net::NetV1;
use crate::virtio::rng::RngV1;
use crate::virtio::transport::{VirtioRestoreError, VirtioV1};
use crate::virtio::vsock::VsockV1;

/// All devices' state. Two of them are equal exactly when the guest could not
/// tell the devices apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusV1 {
    /// The serial line.
    pub serial: SerialV1,
    /// The keyboard controller.
    pub i8042: I8042V1,
    /// The vsock.
    pub vsock: VirtioV1<VsockV1>,
    /// The net device, if there is one.
    pub net: Option<VirtioV1<NetV1>>,
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

/// What a scratch disk holds cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum RebaseError {
    /// There is not one file for each.
    #[error("{files} files for what {disks} scratch disks hold")]
    Count {
        /// Files that came.
        files: usize,
        /// Scratch disks of this machine.
        disks: usize,
    },
    /// A disk cannot be copied.
    #[error("the content of disk {index} cannot be kept")]
    Disk {
        /// Its number, from 0.
        index: usize,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
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
    /// The net device's state.
    #[error("state of the net device")]
    Net(#[source] VirtioRestoreError),
    /// Only one of snapshot and machine has a net device.
    #[error("a net device is in the {} alone", if *snapshot { "snapshot" } else { "machine" })]
    NetPresence {
        /// Whether it is the snapshot.
        snapshot: bool,
    },
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
