//! virtio-block (VIRTIO 1.2, section 5.2): read-only images, and scratch disks, whose
//! base is read-only too and lies under an overlay of the machine's own.
//!
//! The descriptors of images and bases are shared with other microVMs, file position
//! and all: they are only read at positions that the call names. Data moves between
//! file and guest memory inside the kernel; the device itself sees the headers.
//!
//! A request is answered before the next one is taken, so a disk never has work in
//! flight. A reset drops the overlay; at a snapshot the disk's content becomes a
//! file, the base of every later life.

mod device;
mod map;
mod request;
mod scratch;
mod state;
#[cfg(test)]
mod tests;

use device::size;
pub use device::{Block, OpenError};
pub use state::BlockV1;
