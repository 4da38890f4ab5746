//! What the runs of a snapshot write, learned from its first ones.
//!
//! ```text
//!  first run:  what is its machine's own when it confirms, and more when it has answered
//!  second run: what it has not written is struck out ─► known, and kept in a file
//! ```
//!
//! In a machine that is restored from then on, those pages are made its own in one batch,
//! which costs a fraction of the faults. A hint: a page that is named in vain costs a
//! copy, one that is missing a fault.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use snapback_proto::control::{FaultRange, MAX_RUNS, PageRun};
use snapback_vmm::memory::{PageSet, Pagemap};

use crate::pager::{PAGE, WorkingSet};

/// Its name in a snapshot's directory.
pub const FILE_NAME: &str = "written-set";
/// Most pages: what a machine may have of its own before it has done anything, 4 MiB.
const MAX_PAGES: usize = 1024;
/// Runs in larger machines are not looked at: that takes time in proportion, and a caller
/// waits for it.
const MAX_MEMORY: u64 = 1 << 30;

/// What is known of a snapshot's writes.
#[derive(Debug)]
pub(super) struct Writes {
    directory: PathBuf,
    limit: u64,
    /// What the first run wrote, in the order in which it is of use.
    first: Mutex<Option<Vec<u32>>>,
    runs: OnceLock<Vec<PageRun>>,
}

/// Looks at one run.
#[derive(Debug)]
pub struct Watcher {
    pagemap: Pagemap,
    ranges: Vec<FaultRange>,
    pages: Vec<u32>,
}

impl Watcher {
    /// Of the machine whose memory is at `ranges` of process `pid`.
    ///
    /// # Errors
    /// When the kernel does not tell of that process.
    pub fn new(pid: u32, ranges: &[FaultRange]) -> io::Result<Self> {
        Ok(Self {
            pagemap: Pagemap::of_process(pid)?,
            ranges: ranges.to_vec(),
            pages: Vec::new(),
        })
    }

    /// Notes what was written since the last time. About a millisecond.
    pub fn look(&mut self) {
        match self.written() {
            Ok(written) => {
                let known: BTreeSet<u32> = self.pages.iter().copied().collect();
                let new = written.into_iter().filter(|page| !known.contains(page));
                self.pages.extend(new);
            }
            Err(error) => tracing::debug!(%error, "a run's writes cannot be seen"),
        }
    }

    fn written(&self) -> io::Result<Vec<u32>> {
        let mut written = Vec::new();
        for range in &self.ranges {
            let pages = usize::try_from(range.length / PAGE).map_err(io::Error::other)?;
            let mut set = PageSet::new([pages]);
            self.pagemap.own_pages(range.address, pages, 0, &mut set)?;
            let first = u32::try_from(range.offset / PAGE).map_err(io::Error::other)?;
            set.each_run(|_, run| {
                let numbers = run.filter_map(|page| u32::try_from(page).ok());
                written.extend(numbers.map(|page| first.saturating_add(page)));
                Ok::<_, io::Error>(())
            })?;
        }
        Ok(written)
    }
}

impl Writes {
    /// What the file says, when there is one; a bad one is as good as none.
    pub(super) fn read(directory: PathBuf, limit: u64) -> Self {
        let writes = Self {
            limit,
            first: Mutex::default(),
            runs: OnceLock::new(),
            directory,
        };
        match WorkingSet::read(&writes.path(), limit) {
            Ok(Some(set)) => writes.know(&set),
            Ok(None) => {}
            Err(error) => {
                let (path, error) = (writes.path(), &error as &dyn std::error::Error);
                tracing::warn!(path = %path.display(), error, "what runs write is ignored");
            }
        }
        writes
    }

    fn path(&self) -> PathBuf {
        self.directory.join(Path::new(FILE_NAME))
    }

    /// The pages that runs write; nothing while that is not known.
    pub(super) fn known(&self) -> &[PageRun] {
        self.runs.get().map_or(&[], Vec::as_slice)
    }

    /// Whether another run is to be looked at.
    pub(super) fn are_wanted(&self) -> bool {
        self.runs.get().is_none() && self.limit * PAGE <= MAX_MEMORY
    }

    /// Learns what a run wrote. Writes a file after the last one.
    pub(super) fn learn(&self, run: Watcher) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut pages) = first.take() else {
            *first = Some(run.pages);
            return;
        };
        let second: BTreeSet<u32> = run.pages.into_iter().collect();
        pages.retain(|page| second.contains(page));
        let set = WorkingSet::of(pages, self.limit);
        if let Err(error) = set.write(&self.path()) {
            // The snapshot may have been removed meanwhile.
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "what runs write cannot be kept");
        }
        self.know(&set);
    }

    fn know(&self, set: &WorkingSet) {
        let mut left = MAX_PAGES;
        let runs = set.runs().iter().take(MAX_RUNS).map_while(|run| {
            let pages = run.len().min(left);
            left -= pages;
            let pages = u32::try_from(pages).ok().filter(|pages| *pages > 0)?;
            Some(PageRun {
                first: run.start,
                pages,
            })
        });
        // Only the first one counts.
        let _ = self.runs.set(runs.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 5000;

    fn run(pages: impl IntoIterator<Item = u32>) -> Watcher {
        Watcher {
            pagemap: Pagemap::open().unwrap(),
            ranges: Vec::new(),
            pages: pages.into_iter().collect(),
        }
    }

    fn writes(directory: &Path) -> Writes {
        Writes::read(directory.to_owned(), LIMIT)
    }

    fn runs(pages: &[(u32, u32)]) -> Vec<PageRun> {
        let run = |&(first, pages)| PageRun { first, pages };
        pages.iter().map(run).collect()
    }

    #[test]
    fn only_what_two_runs_wrote_is_written_ahead_and_what_is_needed_first_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = writes(folder.path());
        assert!(first.are_wanted());
        first.learn(run([70, 71, 9, 3, 4, 900]));
        assert_eq!(first.known(), []);
        first.learn(run([3, 4, 5, 70, 71, 900]));
        let expected = runs(&[(70, 2), (3, 2), (900, 1)]);
        assert_eq!(first.known(), expected);
        assert!(!first.are_wanted());
        // And it is known when the snapshot is loaded again.
        let again = writes(folder.path());
        assert_eq!(again.known(), expected);
        assert!(!again.are_wanted());
    }

    #[test]
    fn whatever_a_file_says_is_bounded_and_in_the_memory() {
        let folder = tempfile::tempdir().unwrap();
        let all = WorkingSet::of(0..u32::MAX, LIMIT);
        all.write(&folder.path().join(FILE_NAME)).unwrap();
        let pages: u32 = writes(folder.path())
            .known()
            .iter()
            .map(|run| run.pages)
            .sum();
        assert_eq!(usize::try_from(pages).unwrap(), MAX_PAGES);
        let beyond = WorkingSet::of([4999, 5000, 6000], 10_000);
        beyond.write(&folder.path().join(FILE_NAME)).unwrap();
        assert_eq!(writes(folder.path()).known(), runs(&[(4999, 1)]));
        std::fs::write(folder.path().join(FILE_NAME), b"garbage").unwrap();
        let writes = writes(folder.path());
        assert_eq!(writes.known(), []);
        assert!(writes.are_wanted());
    }

    #[test]
    fn a_large_machines_runs_are_not_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let limit = MAX_MEMORY / PAGE;
        assert!(Writes::read(folder.path().to_owned(), limit).are_wanted());
        assert!(!Writes::read(folder.path().to_owned(), limit + 1).are_wanted());
    }

    #[test]
    fn a_run_is_seen_from_outside() {
        let pages = 16;
        let own = vec![1_u8; 4096 * (pages + 1)];
        let address = u64::try_from(own.as_ptr().addr())
            .unwrap()
            .next_multiple_of(PAGE);
        let range = FaultRange {
            address,
            length: PAGE * u64::try_from(pages).unwrap(),
            offset: 100 * PAGE,
        };
        let mut watcher = Watcher::new(std::process::id(), &[range]).unwrap();
        watcher.look();
        watcher.look();
        assert_eq!(watcher.pages, (100..116).collect::<Vec<_>>());
    }
}
