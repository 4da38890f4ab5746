//! virtio-rng (VIRTIO 1.2, section 5.4): randomness of the host's kernel.
//!
//! The guest offers buffers, the device fills them. There are no requests to parse
//! and nothing to remember: two machines of one snapshot read different bytes.
//!
//! Linux asks for its next buffer ahead of time, so a snapshot holds up to 64 bytes
//! that nobody has used, the same in every life of it. They only reach the guest's
//! generator mixed with what is fresh (`Resume`, the VM generation id).

mod device;
mod state;
#[cfg(test)]
mod tests;

pub use device::Rng;
pub use state::RngV1;
