//! virtio-block (VIRTIO 1.2, section 5.2): a read-only image.
//!
//! The image's descriptor is shared with other microVMs, file position and all:
//! only `preadv` touches it. Data moves between file and guest memory inside the
//! kernel; the device itself sees 16 bytes of header per request.

mod device;
mod request;
mod state;
#[cfg(test)]
mod tests;

pub use device::{Block, OpenError};
pub use state::BlockV1;
