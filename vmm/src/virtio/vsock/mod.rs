//! virtio-vsock (VIRTIO 1.2, section 5.10): streams between guest and host.
//!
//! ```text
//!  guest ── TX queue ──► receive ──► connection ──► host socket
//!  guest ◄── RX queue ── send ◄──── connection ◄── host socket
//!                          │            ▲
//!                       resets        hosts ◄──► hub (the agent)
//! ```
//!
//! * `packet`: the 44-byte header, copied once and then trusted.
//! * `stage`: what a connection can be, and what each packet does to it then.
//! * `credit`: who has room for how much.
//! * `connection`: one stream, and what waits in between.
//! * `table`: all streams, and whose turn it is.
//! * `resets`: ends that the guest is still to be told of.
//! * `receive`, `send`: the two directions.
//! * `hosts`: host sockets that are ready, that come and go.
//! * `hub`: how connections other than the channel get their host ends
//!   ([`snapback_proto::hub`]). Without one they are refused.
//! * `device`, `state`: the device, and what of it stands in a snapshot.
//!
//! The invocation channel's connection outlives snapshot, restore and reset, and
//! gets a fresh host socket each time; every other connection is reset, one by one.
//! The device owns no event loop: it says what it waits for ([`crate::poll`]) and is
//! told.
//!
//! What bounds it: [`MAX_CONNECTIONS`] in all, [`MAX_OPENING`] of them not
//! established yet. The channel and [`LARGE_CONNECTIONS`] others may hold
//! [`BUF_ALLOC`] bytes each for a host that does not read, the rest
//! [`SMALL_BUF_ALLOC`]. A call handles at most a queue full of packets in each
//! direction. Streams and answers take turns, so one that floods slows itself down and
//! no other.

mod connection;
mod credit;
mod device;
mod hosts;
mod hub;
mod packet;
mod receive;
mod resets;
mod send;
mod stage;
mod state;
mod table;
#[cfg(test)]
mod tests;

pub use device::Vsock;
pub use state::{ChannelV1, PortsV1, VsockV1};

/// Index of the queue with buffers for the guest to receive into.
pub const RX: usize = 0;
/// Index of the queue with packets from the guest.
pub const TX: usize = 1;
/// Most connections at a time, those that are being opened included.
pub const MAX_CONNECTIONS: usize = 1024;
/// Most connections that are being opened at a time, by either side.
pub const MAX_OPENING: usize = 128;
/// Bytes that a guest may send before the host took any: the bound of what one
/// connection holds on to.
pub const BUF_ALLOC: u32 = 256 << 10;
/// The same for connections that are opened while many others are.
pub const SMALL_BUF_ALLOC: u32 = 16 << 10;
/// How many connections besides the channel get the large bound: all of them
/// together may hold 31 MiB.
pub const LARGE_CONNECTIONS: usize = 64;

const _: () = assert!(
    (LARGE_CONNECTIONS + 1) * BUF_ALLOC as usize + MAX_CONNECTIONS * SMALL_BUF_ALLOC as usize
        <= 33 << 20
);
