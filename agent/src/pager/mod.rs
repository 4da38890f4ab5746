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
//!
//! What the first run of a snapshot touches is recorded; into an empty memfd, those
//! pages are brought at once, between faults, by the same threads. All the rest may
//! follow them: machines that are restored from a complete memory need no pager at all.

mod ahead;
mod bitmap;
mod cache;
mod completion;
mod prefetch;
mod recording;
mod service;
mod source;
mod whole;
mod working_set;

pub use ahead::{Ahead, Arranging, Prepared};
pub use bitmap::Bitmap;
pub use cache::{CacheStats, MemoryCache};
pub use completion::Completion;
pub use recording::Recording;
pub use service::{Pager, RegisterError, Registration};
pub use source::PageSource;
pub use working_set::{FILE_NAME as WORKING_SET_FILE_NAME, WorkingSet, WorkingSetError};

/// Size of a page, in bytes.
pub const PAGE: u64 = 4096;
