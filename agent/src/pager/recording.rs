//! Recording what a run needs: the microVM gets a memfd of its own, empty, so that
//! every page it touches is a fault, and the pages come out of the snapshot's
//! cache.
//!
//! The snapshot's cache may be full already (a guest was booted in it), and it
//! fills many pages at once: its own faults would tell neither all nor only what a
//! run needs.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::PAGE;
use super::cache::MemoryCache;
use super::source::PageSource;
use super::working_set::{MAX_PAGES, WorkingSet};

/// The pages that one microVM touched so far.
#[derive(Debug)]
pub struct Recording {
    pages: Arc<Mutex<Vec<u32>>>,
    limit: u64,
}

#[derive(Debug)]
struct Recorded {
    cache: Arc<MemoryCache>,
    pages: Arc<Mutex<Vec<u32>>>,
}

impl PageSource for Recorded {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.cache.read(offset, bytes)?;
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(page) = u32::try_from(offset / PAGE)
            && pages.len() < MAX_PAGES
        {
            pages.push(page);
        }
        Ok(())
    }

    fn data_after(&self, offset: u64) -> io::Result<u64> {
        // Not asked: a recording is of what is touched.
        Ok(offset)
    }
}

impl Recording {
    /// Memory for one microVM that behaves as `cache`, and what it will have
    /// touched.
    ///
    /// # Errors
    /// When there is no memfd.
    pub fn begin(cache: &Arc<MemoryCache>) -> io::Result<(Arc<MemoryCache>, Self)> {
        let pages = Arc::<Mutex<Vec<u32>>>::default();
        let source = Recorded {
            cache: Arc::clone(cache),
            pages: Arc::clone(&pages),
        };
        // A page at a time: one fault, one entry.
        let own = MemoryCache::cold(cache.len(), Box::new(source), PAGE)?;
        let limit = cache.len() / PAGE;
        Ok((Arc::new(own), Self { pages, limit }))
    }

    /// What was touched until now.
    #[must_use]
    pub fn finish(self) -> WorkingSet {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        WorkingSet::of(pages.iter().copied(), self.limit)
    }
}
