//! virtio-net (VIRTIO 1.2, section 5.1) on a tap.
//!
//! ```text
//!  guest's TX chain ── writev ──► tap ──► host's network
//!  guest's RX chains ◄── readv ──┘
//! ```
//!
//! A frame goes between the guest's buffers and the tap in one system call, behind the
//! 12 bytes of virtio-net header that both sides understand: checksums and TCP
//! segments are left to whoever is last to need them. The device reads nothing of a
//! frame; of the header it writes the number of buffers.
//!
//! The device remembers nothing. What the tap has queued when a driver goes live or a
//! machine runs again belongs to an earlier life and is dropped.

mod device;
mod receive;
mod send;
mod state;
#[cfg(test)]
mod tests;

pub use device::{Net, OpenError};
pub use state::NetV1;

/// Index of the queue with buffers for frames to the guest.
const RX: usize = 0;
/// Index of the queue with frames from the guest.
const TX: usize = 1;

/// Bytes of the header before each frame (section 5.1.6).
const HEADER: u64 = 12;
/// Most bytes before a frame's payload: the header, Ethernet's and a VLAN tag.
const OVERHEAD: u64 = HEADER + 14 + 4;
/// Most bytes of header and frame, when TCP segments may be as large as an IP packet.
const MAX_LARGE: u64 = OVERHEAD + 65535;
/// The same when they may not: Ethernet's payload.
const MAX_PLAIN: u64 = OVERHEAD + 1500;
