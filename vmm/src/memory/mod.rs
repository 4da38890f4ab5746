//! Guest memory: where it lies, how it is mapped, and which pages changed.

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::AtomicBitmap;

/// The guest's memory as devices see it. Writes through it are recorded in the
/// devices' dirty bitmap, one bit per [`PAGE_SIZE`] page.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;

/// The unit of paging, dirty tracking and reset, in bytes.
pub const PAGE_SIZE: usize = 4096;
