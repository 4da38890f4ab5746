//! Fills in guest memory, one page fault at a time, on its own threads.
//!
//! ```text
//!  guest touches a page ─► fault on the VMM's private mapping ─► userfaultfd
//!                                                                   │ epoll
//!      wake ◄── memfd (one per snapshot, shared) ◄── pread ◄── pager thread
//! ```
//!
//! A page is written to the memfd once; every later fault on it, in whatever
//! microVM, only needs a wake, and a microVM that starts later has none. A page
//! that cannot be had ends the microVM that needs it: nobody is ever fed zeroes.

mod bitmap;
mod cache;
mod service;
mod source;

pub use bitmap::Bitmap;
pub use cache::{CacheStats, MemoryCache};
pub use service::{Pager, RegisterError, Registration};
pub use source::{FileSource, PageSource};

/// Size of a page, in bytes.
pub const PAGE: u64 = 4096;
