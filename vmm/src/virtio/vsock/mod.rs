//! virtio-vsock (VIRTIO 1.2, section 5.10): streams between guest and host.
//!
//! ```text
//!  guest ── TX queue ──► receive ──► connection ──► host socket
//!  guest ◄── RX queue ── send ◄──── connection ◄── host socket
//! ```
//!
//! * `packet`: the 44-byte header, copied once and then trusted.
//! * `connection`: one stream, its credit and what waits in between.
//! * `receive`, `send`: the two directions.
//! * `device`: the connection table and the host's side of it.
//!
//! One host port is served: the invocation channel's. Its connection outlives
//! snapshot, restore and reset, and gets a fresh host socket each time; every other
//! connection is reset. The device owns no event loop: it says what it waits for
//! ([`crate::poll`]) and is told.

mod connection;
mod device;
mod packet;
mod receive;
mod send;
mod state;
#[cfg(test)]
mod tests;

pub use device::Vsock;
pub use state::{ConnectionV1, VsockV1};

/// Index of the queue with buffers for the guest to receive into.
pub const RX: usize = 0;
/// Index of the queue with packets from the guest.
pub const TX: usize = 1;
/// Bytes that a guest may send before the host took any: the bound of what one
/// connection holds on to.
pub const BUF_ALLOC: u32 = 256 << 10;
/// Most connections at a time.
pub const MAX_CONNECTIONS: usize = 1024;
