//! What each microVM of a snapshot gets before its guest asks for it, in batches that cost a
//! fraction of the faults: pages that runs write, as its own, and the mapping of those that
//! runs only read.
//!
//! ```text
//!  memory whole, writes known ─► one place of a huge page after the other ─► the rest by page
//! ```
//!
//! Where nobody writes, a huge page is mapped at once. Where somebody does, a microVM maps
//! small pages, but the kernel maps those of a huge page many in one go.
//!
//! The pages that are written come from a file of their own. In the snapshot's memory they are
//! scattered, and each place would be a fault of its own to read; here they are one after the
//! other, in huge pages where the host has them.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use snapback_proto::control::{MAX_RUNS, PageRun};
use snapback_vmm::sys::memfd::{self, HUGE_PAGE};

use super::PAGE;
use super::cache::{Joined, MemoryCache, PAGES_PER_HUGE};
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
    /// The next place of a huge page.
    next: u64,
    /// Places that are one huge page now.
    huge: BTreeSet<u64>,
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
        Self {
            touched: all.filter(|page| !own.contains(page)).collect(),
            cache: Arc::clone(cache),
            written: written.to_vec(),
            next: 0,
            huge: BTreeSet::new(),
            into: Arc::clone(into),
        }
    }

    /// Looks at the next place, or prepares what is left. False when nothing is left.
    pub(super) fn step(&mut self) -> bool {
        let place = self.next;
        self.next += 1;
        let pages = place * PAGES_PER_HUGE..self.next * PAGES_PER_HUGE;
        let is_written = self.is_written(place);
        let read = self.touched.range(pages).count();
        let worth_it = !is_written && read >= WORTH_IT;
        match self.cache.join(place, worth_it) {
            Joined::Yes => {
                self.huge.insert(place);
                true
            }
            Joined::No => true,
            Joined::Over => {
                self.prepare();
                false
            }
        }
    }

    fn is_written(&self, place: u64) -> bool {
        let mut pages = self.written.iter().flat_map(pages);
        pages.any(|page| page / PAGES_PER_HUGE == place)
    }

    /// A failure leaves nothing: then guests take their faults.
    fn prepare(&mut self) {
        let touched = self.to_map();
        match Prepared::make(std::mem::take(&mut self.written), touched, &self.cache) {
            Ok(prepared) => {
                // Only the first one counts.
                let _ = self.into.0.set(prepared);
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "nothing is given to microVMs ahead");
            }
        }
    }

    /// The pages that are to be mapped: one for all of a huge page where nobody writes.
    fn to_map(&self) -> Vec<PageRun> {
        let mut runs = Vec::new();
        let mut mapped = None;
        for page in &self.touched {
            let place = page / PAGES_PER_HUGE;
            let whole = self.huge.contains(&place) && !self.is_written(place);
            if !(whole && mapped.replace(place) == Some(place)) {
                add(&mut runs, *page);
            }
        }
        runs.truncate(MAX_RUNS);
        runs
    }
}

/// The pages of a run.
fn pages(run: &PageRun) -> impl Iterator<Item = u64> {
    let first = u64::from(run.first);
    first..first + u64::from(run.pages)
}

fn add(runs: &mut Vec<PageRun>, page: u64) {
    let Ok(page) = u32::try_from(page) else {
        return;
    };
    match runs.last_mut() {
        Some(last) if last.first.checked_add(last.pages) == Some(page) => last.pages += 1,
        _ => runs.push(PageRun {
            first: page,
            pages: 1,
        }),
    }
}

/// What is there for the microVMs of a snapshot.
#[derive(Debug)]
pub struct Prepared {
    written: Vec<PageRun>,
    copies: OwnedFd,
    touched: Vec<PageRun>,
}

impl Prepared {
    /// Makes the file of what is written, of a memory that is whole.
    ///
    /// # Errors
    /// When there are no such pages, or no file can be made.
    fn make(written: Vec<PageRun>, touched: Vec<PageRun>, cache: &MemoryCache) -> io::Result<Self> {
        const HUGE: u64 = HUGE_PAGE as u64;
        let pages: u64 = written.iter().map(|run| u64::from(run.pages)).sum();
        let len = (pages * PAGE).next_multiple_of(HUGE);
        let file = memfd::create("snapback-written", len)?;
        let mut bytes = Vec::new();
        let mut at = 0;
        for run in &written {
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
        Ok(Self {
            copies: memfd::read_only(&file)?,
            written,
            touched,
        })
    }

    /// Pages that runs write.
    #[must_use]
    pub fn written(&self) -> &[PageRun] {
        &self.written
    }

    /// A file of these pages, one after the other, not writable.
    #[must_use]
    pub fn copies(&self) -> BorrowedFd<'_> {
        self.copies.as_fd()
    }

    /// Pages that runs touch besides.
    #[must_use]
    pub fn touched(&self) -> &[PageRun] {
        &self.touched
    }
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
    fn what_is_written_is_copied_and_what_is_touched_besides_is_mapped() {
        let ahead = arranged(
            2000,
            &[(8, 1), (1030, 1), (6, 1)],
            &[700, 5, 6, 7, 8, 9, 600, 1030, 1031],
        );
        let prepared = ahead.get().unwrap();
        assert_eq!(prepared.written(), runs(&[(8, 1), (1030, 1), (6, 1)]));
        let touched = [(5, 1), (7, 1), (9, 1), (600, 1), (700, 1), (1031, 1)];
        assert_eq!(prepared.touched(), runs(&touched));
    }

    #[test]
    fn one_page_stands_for_a_huge_page_in_which_nobody_writes() {
        let cache = MemoryCache::cold(4096 * PAGE, Box::new(Numbers), 16 * PAGE).unwrap();
        let set = WorkingSet::of([5, 6, 600, 601, 700, 2000, 2001], 4096);
        let written = runs(&[(2002, 1)]);
        let mut work = Arranging::new(&Arc::new(cache), &written, Some(&set), &Arc::default());
        work.huge = BTreeSet::from([1, 3]);
        assert_eq!(work.to_map(), runs(&[(5, 2), (600, 1), (2000, 2)]));
    }

    #[test]
    fn copies_are_one_after_the_other_in_the_order_of_their_runs() {
        assert!(arranged(40, &[(39, 2)], &[]).get().is_none(), "no page 40");
        let ahead = arranged(40, &[(30, 2), (7, 1)], &[]);
        let file = ahead.get().unwrap().copies();
        for (at, page) in (0..).zip([30, 31, 7]) {
            let mut bytes = [0; 4096];
            rustix::io::pread(file, &mut bytes, at * PAGE).unwrap();
            assert_eq!(bytes, [page; 4096]);
        }
        assert!(rustix::io::pwrite(file, b"x", 0).is_err(), "read-only");
    }
}
