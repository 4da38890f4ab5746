//! How a snapshot's memory is arranged for the microVMs that will run from it, once all of it
//! is there and it is known what runs write.
//!
//! ```text
//!  whole, writes known ─► one place of a huge page after the other ─► copies of what is written
//! ```
//!
//! Where nobody writes, a huge page is mapped by one fault. Where somebody does, a microVM
//! maps small pages, but the kernel maps those of a huge page many in one go.
//!
//! The place that is written most may be worth to be each microVM's own as a whole; its huge
//! page is there to be copied from.
//!
//! Other pages that are written are made each microVM's own before its guest comes to them. In the
//! snapshot's memory they are scattered, and each place would be a fault of its own to read;
//! in a file of their own they are one after the other, in huge pages where the host has them.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use snapback_proto::control::PageRun;
use snapback_vmm::sys::memfd::{self, HUGE_PAGE};

use super::PAGE;
use super::cache::{MemoryCache, PAGES_PER_HUGE};
use super::whole;
use super::working_set::WorkingSet;

/// So many pages that runs read, and none that they write, are worth a huge page, whatever
/// memory its holes take up.
const WORTH_IT: usize = 32;

/// Arranges the memory of a snapshot, a step at a time.
#[derive(Debug)]
pub struct Arranging {
    cache: Arc<MemoryCache>,
    /// What runs write, in the order in which it is of use.
    written: Vec<PageRun>,
    /// What they touch besides, by number.
    touched: BTreeSet<u64>,
    /// The place that each microVM gets as a whole.
    whole: Option<u32>,
    /// The next place of a huge page.
    next: u64,
    into: Arc<Ahead>,
}

impl Arranging {
    /// For runs that write `written` and touch `set`, of a memory that is whole.
    #[must_use]
    pub fn new(
        cache: &Arc<MemoryCache>,
        written: &[PageRun],
        set: Option<&WorkingSet>,
        into: &Arc<Ahead>,
    ) -> Self {
        let own: BTreeSet<u64> = written.iter().flat_map(pages).collect();
        let all = set.iter().flat_map(|set| set.sorted()).flatten();
        let touched = all.filter(|page| !own.contains(page)).collect();
        let places = cache.len() / PAGE / PAGES_PER_HUGE;
        Self {
            whole: whole::choose(&own, &touched, places),
            touched,
            cache: Arc::clone(cache),
            written: written.to_vec(),
            next: 0,
            into: Arc::clone(into),
        }
    }

    /// Looks at the next place, or prepares what is left. False when nothing is left.
    pub(super) fn step(&mut self) -> bool {
        let place = self.next;
        self.next += 1;
        let goes_on = self.cache.join(place, self.is_worth_it(place));
        if !goes_on {
            self.prepare();
        }
        goes_on
    }

    fn is_worth_it(&self, place: u64) -> bool {
        if self.whole.map(u64::from) == Some(place) {
            return true;
        }
        let first = place * PAGES_PER_HUGE;
        let read = self.touched.range(first..first + PAGES_PER_HUGE).count();
        let mut written = self.written.iter().flat_map(pages);
        read >= WORTH_IT && !written.any(|page| page / PAGES_PER_HUGE == place)
    }

    /// A failure leaves nothing: then guests take their faults.
    fn prepare(&mut self) {
        let written = std::mem::take(&mut self.written);
        match Prepared::make(written, self.whole, &self.cache) {
            Ok(prepared) => {
                // Only the first one counts.
                let _ = self.into.0.set(prepared);
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "what runs write cannot be copied ahead");
            }
        }
    }
}

/// The pages of a run.
fn pages(run: &PageRun) -> impl Iterator<Item = u64> {
    let first = u64::from(run.first);
    first..first + u64::from(run.pages)
}

/// What is there for the microVMs of a snapshot.
#[derive(Debug)]
pub struct Prepared {
    whole: Option<u32>,
    written: Vec<PageRun>,
    copies: Option<OwnedFd>,
}

impl Prepared {
    /// Makes the file of what is written outside of the `whole` place, of a memory that lacks
    /// nothing.
    ///
    /// # Errors
    /// When there are no such pages, or no file can be made.
    fn make(
        mut written: Vec<PageRun>,
        whole: Option<u32>,
        cache: &MemoryCache,
    ) -> io::Result<Self> {
        if let Some(place) = whole {
            written = whole::outside(&written, place);
        }
        let some = !written.is_empty();
        let copies = some.then(|| copies(&written, cache)).transpose()?;
        Ok(Self {
            whole,
            written,
            copies,
        })
    }

    /// The place of a huge page that runs write so much that each microVM gets it as a whole.
    #[must_use]
    pub fn whole(&self) -> Option<u32> {
        self.whole
    }

    /// Pages that runs write outside of that place.
    #[must_use]
    pub fn written(&self) -> &[PageRun] {
        &self.written
    }

    /// A file of these pages, one after the other, not writable; if there are any.
    #[must_use]
    pub fn copies(&self) -> Option<BorrowedFd<'_>> {
        self.copies.as_ref().map(|file| file.as_fd())
    }
}

/// A file of pages of a memory, one after the other.
fn copies(written: &[PageRun], cache: &MemoryCache) -> io::Result<OwnedFd> {
    const HUGE: u64 = HUGE_PAGE as u64;
    let pages: u64 = written.iter().map(|run| u64::from(run.pages)).sum();
    let len = (pages * PAGE).next_multiple_of(HUGE);
    let file = memfd::create("snapback-written", len)?;
    let mut bytes = Vec::new();
    let mut at = 0;
    for run in written {
        let len = usize::try_from(u64::from(run.pages) * PAGE).map_err(io::Error::other)?;
        bytes.resize(len, 0);
        cache.read(u64::from(run.first) * PAGE, &mut bytes)?;
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            let count = rustix::io::pwrite(&file, left, at)?;
            at += u64::try_from(count).map_err(io::Error::other)?;
            left = &left[count..];
        }
    }
    for offset in (0..len).step_by(HUGE_PAGE) {
        if let Err(error) = memfd::collapse(&file, offset) {
            tracing::debug!(%error, "copies of pages have no huge pages");
        }
    }
    memfd::read_only(&file)
}

/// What is prepared for the microVMs of one snapshot, once it is.
#[derive(Debug, Default)]
pub struct Ahead(OnceLock<Prepared>);

impl Ahead {
    /// Nothing until it is made.
    #[must_use]
    pub fn get(&self) -> Option<&Prepared> {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::PageSource;

    /// Page `n` is full of byte `n`, modulo 256.
    #[derive(Debug)]
    struct Numbers;

    impl PageSource for Numbers {
        fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
            for (page, chunk) in (offset / PAGE..).zip(bytes.chunks_mut(4096)) {
                chunk.fill(u8::try_from(page % 256).unwrap());
            }
            Ok(())
        }

        fn data_after(&self, offset: u64) -> io::Result<u64> {
            Ok(offset)
        }
    }

    fn runs(all: &[(u32, u32)]) -> Vec<PageRun> {
        let run = |&(first, pages)| PageRun { first, pages };
        all.iter().map(run).collect()
    }

    fn arranged(len: u64, written: &[(u32, u32)], set: &[u32]) -> Arc<Ahead> {
        let cache = MemoryCache::cold(len * PAGE, Box::new(Numbers), 16 * PAGE).unwrap();
        let ahead = Arc::default();
        let set = WorkingSet::of(set.iter().copied(), len);
        let mut work = Arranging::new(&Arc::new(cache), &runs(written), Some(&set), &ahead);
        while work.step() {
            assert!(work.next < 100);
        }
        ahead
    }

    #[test]
    fn a_place_is_worth_a_huge_page_where_much_is_read_and_nothing_written() {
        let cache = MemoryCache::cold(1536 * PAGE, Box::new(Numbers), 16 * PAGE).unwrap();
        let cache = Arc::new(cache);
        // As much is read in the first two places; in the second, a page is written.
        let set = WorkingSet::of((0..40).chain(600..640), 1536);
        let (written, ahead) = (runs(&[(700, 1)]), Arc::default());
        let mut work = Arranging::new(&cache, &written, Some(&set), &ahead);
        let worth = |work: &Arranging, place| work.is_worth_it(place);
        assert_eq!(
            [0, 1, 2].map(|place| worth(&work, place)),
            [true, false, false]
        );
        while work.step() {
            assert!(work.next < 4 && ahead.get().is_none(), "copies come last");
        }
        assert_eq!(ahead.get().unwrap().written(), written);
    }

    #[test]
    fn copies_are_one_after_the_other_in_the_order_of_their_runs() {
        assert!(arranged(40, &[(39, 2)], &[]).get().is_none(), "no page 40");
        let ahead = arranged(40, &[(30, 2), (7, 1)], &[]);
        let file = ahead.get().unwrap().copies().unwrap();
        for (at, page) in (0..).zip([30, 31, 7]) {
            let mut bytes = [0; 4096];
            rustix::io::pread(file, &mut bytes, at * PAGE).unwrap();
            assert_eq!(bytes, [page; 4096]);
        }
        assert!(rustix::io::pwrite(file, b"x", 0).is_err(), "read-only");
    }

    #[test]
    fn pages_of_a_place_that_is_copied_as_a_whole_have_no_copies_of_their_own() {
        // 40 pages of the second place and, if they are there, two of the first.
        for others in [vec![(7, 2)], vec![]] {
            let mut all = others.clone();
            all.push((600, 40));
            let ahead = arranged(1536, &all, &[]);
            let prepared = ahead.get().unwrap();
            assert_eq!(prepared.whole(), Some(1));
            assert_eq!(prepared.written(), runs(&others));
            assert_eq!(prepared.copies().is_none(), others.is_empty());
        }
    }

    #[test]
    fn a_place_that_is_copied_as_a_whole_is_worth_a_huge_page_though_it_is_written() {
        let cache = MemoryCache::cold(1536 * PAGE, Box::new(Numbers), 16 * PAGE).unwrap();
        let (written, ahead) = (runs(&[(600, 40), (1030, 31)]), Arc::default());
        let work = Arranging::new(&Arc::new(cache), &written, None, &ahead);
        let worth = [0, 1, 2].map(|place| work.is_worth_it(place));
        assert_eq!(worth, [false, true, false]);
    }
}
