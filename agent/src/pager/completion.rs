//! Bringing all the rest of a snapshot's memory, a piece at a time.
//!
//! When it is through, no page of the snapshot is missing: what is a hole in the memfd
//! is zero in the snapshot, too. Machines that are restored from then on need no pager.

use std::io;
use std::sync::Arc;

use super::PAGE;
use super::cache::MemoryCache;

/// Most pages of one step: what a fault may have to wait for.
const STEP: u64 = 64;

/// How far the memory of one snapshot has been looked through.
#[derive(Debug)]
pub struct Completion {
    cache: Arc<MemoryCache>,
    /// Every page before this one is in the memfd, or zero.
    next: u64,
}

impl Completion {
    /// Begins at the first page.
    #[must_use]
    pub const fn of(cache: Arc<MemoryCache>) -> Self {
        Self { cache, next: 0 }
    }

    /// Brings the next pages that are missing. False when there are none any more; the
    /// cache knows it then.
    ///
    /// # Errors
    /// When a page cannot be had: the memory stays incomplete, and whoever needs that
    /// page has a fault.
    pub fn step(&mut self) -> io::Result<bool> {
        let mut brought = 0;
        while brought < STEP {
            let Some(page) = self.cache.data_at_or_after(self.next)? else {
                self.cache.set_complete();
                return Ok(false);
            };
            if !self.cache.has(page) {
                self.cache.bring(page..page + 1)?;
                brought += 1;
            }
            self.next = page + 1;
        }
        Ok(true)
    }

    /// All steps at once.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn finish(mut self) -> io::Result<()> {
        while self.step()? {}
        Ok(())
    }
}

impl MemoryCache {
    /// The first page at or after `page` that may be other than zero.
    fn data_at_or_after(&self, page: u64) -> io::Result<Option<u64>> {
        let offset = page * PAGE;
        if offset >= self.len() {
            return Ok(None);
        }
        let data = self.source().data_after(offset)?;
        Ok((data < self.len()).then_some(data / PAGE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::PageSource;

    /// Every third page is data.
    #[derive(Debug)]
    struct Thirds {
        broken: Option<u64>,
    }

    impl PageSource for Thirds {
        fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
            if self.broken == Some(offset / PAGE) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            bytes.fill(u8::from((offset / PAGE).is_multiple_of(3)));
            Ok(())
        }

        fn data_after(&self, offset: u64) -> io::Result<u64> {
            Ok(offset.div_ceil(3 * PAGE) * 3 * PAGE)
        }
    }

    fn cache(broken: Option<u64>) -> Arc<MemoryCache> {
        let source = Box::new(Thirds { broken });
        Arc::new(MemoryCache::cold(600 * PAGE, source, PAGE).unwrap())
    }

    #[test]
    fn all_data_is_brought_and_no_hole() {
        let cache = cache(None);
        cache.fill(9 * PAGE).unwrap();
        assert!(!cache.is_complete());
        let mut completion = Completion::of(Arc::clone(&cache));
        assert!(completion.step().unwrap(), "one step is not enough");
        assert!(!cache.is_complete());
        completion.finish().unwrap();
        assert!(cache.is_complete());
        assert_eq!(cache.stats().filled, 200);
        assert!((0..600).all(|page| cache.has(page) == (page % 3 == 0)));
    }

    #[test]
    fn a_memory_with_a_page_that_cannot_be_had_is_never_complete() {
        let cache = cache(Some(300));
        assert!(Completion::of(Arc::clone(&cache)).finish().is_err());
        assert!(!cache.is_complete());
    }
}
