//! The wire contract of Snapback's three programs.
//!
//! ```text
//!  agent ── control (seqpacket + descriptors) ──► snapback-vmm
//!  agent ── channel (frames over one vsock stream) ──► guest-init
//! ```
//!
//! * [`control`]: what the agent says to a VMM process and what it answers.
//! * [`cpu`]: which processor a guest sees.
//! * [`frame`]: the length-prefixed frames of the invocation channel, with caps.
//! * [`guest`]: the messages those frames carry.
//! * [`hub`]: how a VMM process gets the host ends of its guest's connections.
//! * [`ids`]: identifiers that cross a process boundary.
//! * [`words`]: errors in words.
//!
//! Both sides of both wires treat what they read as untrusted: sizes are checked
//! before anything is allocated, and a message is consumed to its last byte.

pub mod control;
pub mod cpu;
pub mod frame;
pub mod guest;
pub mod hub;
pub mod ids;
mod packet;
mod wire;
pub mod words;

pub use packet::PacketError;
pub use wire::WireError;

/// Version of the control protocol between agent and VMM. Both come from one
/// build; a different number means a mixed installation and is refused.
pub const CONTROL_VERSION: u16 = 4;

/// Version of the invocation channel between agent and guest-init. A snapshot
/// keeps the guest-init that it was made with, so this outlives a build.
pub const CHANNEL_VERSION: u16 = 1;

/// vsock port (on the host, CID 2) of the invocation channel.
pub const CHANNEL_PORT: u32 = 1024;

/// The guest's vsock context id. Every microVM has its own VMM process and no
/// microVM can reach another, so one number serves all.
pub const GUEST_CID: u32 = 3;
