//! Pages that a vCPU wrote, taken from its dirty ring.

use crate::memory::PageSet;
use crate::sys::dirty_ring::DirtyRing;

/// A vCPU's dirty ring, and the pages already taken from it because it was full.
#[derive(Debug)]
pub struct DirtyTracker {
    ring: DirtyRing,
    pages: PageSet,
}

impl DirtyTracker {
    /// Tracks `ring` over the pages that `empty` is a set of.
    #[must_use]
    pub fn new(ring: DirtyRing, empty: PageSet) -> Self {
        Self { ring, pages: empty }
    }

    /// Empties the ring. The caller then gives the entries back to the kernel
    /// ([`crate::sys::dirty_ring::reset_all`]).
    pub fn collect(&mut self) {
        while let Some(page) = self.ring.collect() {
            self.pages.insert(page.slot, page.page);
        }
    }

    /// Moves everything collected so far into `into`. Returns how many pages
    /// there were.
    pub fn take(&mut self, into: &mut PageSet) -> u64 {
        let count = self.pages.len();
        into.absorb(&mut self.pages);
        count
    }
}
