//! The pages that a run needed, in the order in which it needed them: a file
//! beside a snapshot.
//!
//! ```text
//!  0  magic "SNAPWS\r\n"    8  version u16      10  number of runs u32
//! 14  runs: first page u32, pages u32           at the end  BLAKE3 of all before
//! ```
//!
//! Numbers are little-endian. The file is a hint, and nobody trusts it: what is in
//! it decides which pages are read early, never what is in them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::path::Path;

/// Its name in a snapshot's directory.
pub const FILE_NAME: &str = "working-set";
/// What its name ends with while it is written.
const DRAFT: &str = "new";

const MAGIC: &[u8; 8] = b"SNAPWS\r\n";
const VERSION: u16 = 1;
const HEAD: usize = 14;
const RUN: usize = 8;
const HASH: usize = 32;

/// Most runs of one file.
pub const MAX_RUNS: usize = 16 * 1024;
/// Most pages of one working set: 128 MiB.
pub const MAX_PAGES: usize = 32 * 1024;

/// Pages, none of them twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkingSet {
    /// In the order in which they were needed.
    runs: Vec<Range<u32>>,
}

/// A file is no working set.
#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// It is longer than any that was written.
    #[error("it is too long")]
    TooLong,
    /// It is not one, or damaged, or of another version.
    #[error("it is damaged, or of another version")]
    Damaged,
}

impl WorkingSet {
    /// Of `pages` in their order. Later ones are dropped when there are too many,
    /// and so is a page that is not below `limit` or was there before.
    #[must_use]
    pub fn of(pages: impl IntoIterator<Item = u32>, limit: u64) -> Self {
        let mut runs: Vec<Range<u32>> = Vec::new();
        let mut seen = BTreeSet::new();
        for page in pages {
            let Some(next) = page.checked_add(1) else {
                continue;
            };
            if u64::from(page) >= limit || !seen.insert(page) {
                continue;
            }
            let full = runs.len() == MAX_RUNS;
            match runs.last_mut() {
                Some(last) if last.end == page => last.end = next,
                _ if full => break,
                _ => runs.push(page..next),
            }
            if seen.len() == MAX_PAGES {
                break;
            }
        }
        Self { runs }
    }

    /// How many pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.runs.iter().map(ExactSizeIterator::len).sum()
    }

    /// The pages by number, as few runs as there can be.
    #[must_use]
    pub fn sorted(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<_> = self
            .runs
            .iter()
            .map(|run| u64::from(run.start)..u64::from(run.end))
            .collect();
        runs.sort_by_key(|run| run.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(runs.len());
        for run in runs {
            match merged.last_mut() {
                Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
                _ => merged.push(run),
            }
        }
        merged
    }

    /// The runs, in the order in which they were needed.
    #[must_use]
    pub fn runs(&self) -> &[Range<u32>] {
        &self.runs
    }

    /// Reads a file, when there is one, for a memory of `limit` pages.
    ///
    /// # Errors
    /// When the file is no working set: nothing of it is used then.
    pub fn read(path: &Path, limit: u64) -> Result<Option<Self>, WorkingSetError> {
        const LONGEST: usize = HEAD + MAX_RUNS * RUN + HASH;
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let most = u64::try_from(LONGEST).unwrap_or(u64::MAX);
        if !file.metadata()?.is_file() {
            return Err(WorkingSetError::Damaged);
        }
        let mut bytes = Vec::new();
        file.take(most + 1).read_to_end(&mut bytes)?;
        if bytes.len() > LONGEST {
            return Err(WorkingSetError::TooLong);
        }
        Self::decode(&bytes, limit)
            .map(Some)
            .ok_or(WorkingSetError::Damaged)
    }

    /// Writes a file; a reader sees all of it or the one before.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let draft = path.with_extension(DRAFT);
        let mut file = File::create(&draft)?;
        file.write_all(&self.encode())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    }

    fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.runs.len()).unwrap_or(0);
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        for run in &self.runs {
            bytes.extend(run.start.to_le_bytes());
            bytes.extend((run.end - run.start).to_le_bytes());
        }
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8], limit: u64) -> Option<Self> {
        let (content, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH)?)?;
        let (head, runs) = content.split_at_checked(HEAD)?;
        let (magic, head) = head.split_first_chunk::<8>()?;
        let (version, count) = head.split_first_chunk::<2>()?;
        let count = u32::from_le_bytes(count.try_into().ok()?);
        let whole = usize::try_from(count).ok()?.checked_mul(RUN)? == runs.len();
        let ours = magic == MAGIC && u16::from_le_bytes(*version) == VERSION;
        if !ours || !whole || blake3::hash(content).as_bytes() != hash {
            return None;
        }
        let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).unwrap_or(0);
        // A run is walked only as far as it lies in the memory: its length is
        // anybody's invention.
        let limit = limit.min(u64::from(u32::MAX));
        let end = u32::try_from(limit).unwrap_or(u32::MAX);
        let pages = runs.chunks_exact(RUN).flat_map(|run| {
            let (first, len) = run.split_at(4);
            let first = number(first);
            first..first.saturating_add(number(len)).min(end)
        });
        Some(Self::of(pages.take(2 * MAX_PAGES), limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1000;

    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        bytes
    }

    fn file(runs: &[(u32, u32)]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u32::try_from(runs.len()).unwrap().to_le_bytes());
        for (first, len) in runs {
            bytes.extend(first.to_le_bytes());
            bytes.extend(len.to_le_bytes());
        }
        sealed(bytes)
    }

    #[test]
    fn what_is_written_is_read_again_in_the_same_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        assert_eq!(WorkingSet::read(&path, LIMIT).unwrap(), None);
        let set = WorkingSet::of([7, 8, 9, 3, 4, 999, 5], LIMIT);
        assert_eq!(set.pages(), 7);
        assert_eq!(set.sorted(), [3..6, 7..10, 999..1000]);
        set.write(&path).unwrap();
        let again = WorkingSet::read(&path, LIMIT).unwrap().unwrap();
        assert_eq!(again, set);
        assert_eq!(again.runs, [7..10, 3..5, 999..1000, 5..6]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn pages_that_are_not_there_or_come_twice_are_dropped() {
        let set = WorkingSet::decode(&file(&[(5, 2), (990, u32::MAX), (6, 3)]), LIMIT).unwrap();
        assert_eq!(set.sorted(), [5..9, 990..1000]);
        for run in [(1000, 1), (u32::MAX, u32::MAX), (0, 0)] {
            assert_eq!(WorkingSet::decode(&file(&[run]), LIMIT).unwrap().pages(), 0);
        }
    }

    #[test]
    fn no_file_makes_a_set_larger_than_the_caps() {
        let everything = vec![(0, u32::MAX); MAX_RUNS];
        let set = WorkingSet::decode(&file(&everything), u64::from(u32::MAX)).unwrap();
        assert_eq!(set.pages(), MAX_PAGES);
        let set = WorkingSet::of((0..u32::MAX).step_by(2), u64::from(u32::MAX));
        assert_eq!(set.pages(), MAX_RUNS);
    }

    #[test]
    fn a_damaged_file_is_refused_as_a_whole() {
        let good = file(&[(5, 2), (9, 1)]);
        assert!(WorkingSet::decode(&good, LIMIT).is_some());
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 1;
            assert_eq!(WorkingSet::decode(&bad, LIMIT), None, "{position}");
            assert_eq!(WorkingSet::decode(&good[..position], LIMIT), None);
        }
        let mut other = MAGIC.to_vec();
        other.extend((VERSION + 1).to_le_bytes());
        other.extend(0_u32.to_le_bytes());
        assert_eq!(WorkingSet::decode(&sealed(other), LIMIT), None);
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let file = File::create(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        let error = WorkingSet::read(&path, LIMIT).unwrap_err();
        assert!(matches!(error, WorkingSetError::TooLong));
    }
}
