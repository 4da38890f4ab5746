//! Guest memory: where it lies, how it is backed, and which pages changed.
//!
//! * [`layout`]: guest-physical addresses.
//! * [`guest`]: the memory of one machine.
//! * [`compare`]: what differs from the snapshot.
//! * [`dirty`]: what the guest wrote.
//! * [`pages`]: sets of pages.

mod compare;
pub mod dirty;
pub mod guest;
pub mod layout;
pub mod pages;

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::AtomicBitmap;

pub use guest::{GuestMemory, MemoryError};
pub use pages::PageSet;

/// The guest's memory as devices see it. Writes through it are recorded in the
/// devices' dirty bitmap, one bit per [`PAGE_SIZE`] page.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;

/// The unit of paging, dirty tracking and reset, in bytes.
pub const PAGE_SIZE: usize = 4096;
