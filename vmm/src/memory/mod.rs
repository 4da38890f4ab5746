//! Guest memory: where it lies, how it is backed, and which pages changed.
//!
//! * [`layout`]: guest-physical addresses.
//! * [`guest`]: the memory of one machine.
//! * [`compare`]: what differs from the snapshot.
//! * [`ahead`]: what the guest will write.
//! * [`dirty`]: what the guest wrote since it was reset.
//! * [`own`]: what it wrote in its first life.
//! * [`writes`]: what devices wrote.
//! * [`pages`]: sets of pages.

pub mod ahead;
mod compare;
pub mod dirty;
pub mod guest;
pub mod layout;
pub mod own;
pub mod pages;
pub mod writes;

use vm_memory::GuestMemoryMmap;

pub use ahead::{Ahead, Written};
pub use guest::{GuestMemory, MemoryError};
pub use own::Pagemap;
pub use pages::PageSet;
pub use writes::DeviceWrites;

/// The guest's memory as devices see it. Writes through it are recorded.
pub type GuestRam = GuestMemoryMmap<DeviceWrites>;

/// The unit of paging, dirty tracking and reset, in bytes.
pub const PAGE_SIZE: usize = 4096;
