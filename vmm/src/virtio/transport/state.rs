//! The transport's state in a snapshot.

use serde::{Deserialize, Serialize};

use crate::virtio::DeviceRestoreError;
use crate::virtio::queue::{QueueRestoreError, QueueV1};

/// A virtio device: what all have, and what only this one has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioV1<S> {
    /// Registers and queues.
    pub transport: TransportV1,
    /// The device's own state.
    pub device: S,
}

/// Registers and queues of a virtio-mmio device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportV1 {
    /// What kind of device it is; has to agree.
    pub device_id: u32,
    /// The features that the driver wrote; accepted once `FEATURES_OK` is set.
    pub driver_features: u64,
    /// Which half of the device's features the driver looks at.
    pub device_features_sel: u32,
    /// Which half of its own features the driver writes.
    pub driver_features_sel: u32,
    /// Which queue the driver sets up.
    pub queue_sel: u32,
    /// The status field.
    pub status: u32,
    /// Interrupts that the driver has not acknowledged.
    pub interrupt_status: u32,
    /// Changes with the configuration space (virtio 1.2, chapter 4.2.2), which no
    /// device's does while its driver runs: it stays 0.
    pub config_generation: u32,
    /// The queues, in order.
    pub queues: Vec<QueueV1>,
}

/// Why a virtio device's state was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VirtioRestoreError {
    /// Another kind of device.
    #[error("device id {snapshot} in the snapshot, {machine} in this machine")]
    DeviceId {
        /// Id in the snapshot.
        snapshot: u32,
        /// Id of this device.
        machine: u32,
    },
    /// A status that no driver can reach.
    #[error("status {0:#x} cannot be reached")]
    Status(u32),
    /// Accepted features that this device does not offer.
    #[error("features {snapshot:#x} were accepted, {machine:#x} are offered")]
    Features {
        /// Accepted in the snapshot.
        snapshot: u64,
        /// Offered by this device.
        machine: u64,
    },
    /// An interrupt status with bits that do not exist.
    #[error("interrupt status {0:#x}")]
    InterruptStatus(u32),
    /// Another number of queues.
    #[error("{snapshot} queues in the snapshot, {machine} in this device")]
    QueueCount {
        /// Queues in the snapshot.
        snapshot: usize,
        /// Queues of this device.
        machine: usize,
    },
    /// A queue's state.
    #[error("queue {queue}")]
    Queue {
        /// Which queue.
        queue: usize,
        /// What is wrong with it.
        #[source]
        source: QueueRestoreError,
    },
    /// The device's own state.
    #[error("device state")]
    Device(#[source] DeviceRestoreError),
}
