//! What the host costs by itself: a figure is only worth something beside these.
//!
//! * [`page_copy`]: a page from one place to another, by the VMM's own routine.
//! * [`guest`]: an exit, a fault and a userfault of a guest of a few instructions,
//!   through the same kernel boundary that the VMM uses.

mod error;
mod guest;
mod page_copy;

pub use error::FloorError;
pub use guest::guest;
pub use page_copy::page_copy;
