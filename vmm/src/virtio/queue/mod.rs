//! Split virtqueues (VIRTIO 1.2, section 2.7).
//!
//! [`VirtQueue`] is the glue around virtio-queue's `Queue`: it holds the registers
//! that the driver writes, refuses rings that are not in guest memory, and turns a
//! descriptor chain into a checked [`Chain`] before a device sees it.

mod chain;
mod device;
mod serve;
mod state;
#[cfg(test)]
mod tests;

pub use chain::{Buffers, Chain, GuestSlice};
pub use device::{QueueRegister, VirtQueue};
pub use serve::{Served, on_queue};
pub use state::{QueueRestoreError, QueueV1};

/// How a ring or a chain is broken.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The ring itself.
    #[error("broken ring")]
    Ring(#[source] virtio_queue::Error),
    /// A chain that loops, runs out of the table, is longer than the queue or has
    /// a readable buffer behind a writable one.
    #[error("malformed descriptor chain at {head}")]
    Chain {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A buffer lies outside guest memory, or is shorter than the device needs.
    #[error("buffer out of reach")]
    Buffer,
}
