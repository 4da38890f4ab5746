//! The map of a diff snapshot's memory: which pages its own memory file defines. All
//! others are its base's. A page in the map that is a hole in the file is zero.
//!
//! ```text
//!  magic (8) · version (u16) · number of runs (u32)
//!  run: first page (u32) · number of pages (u32)        ascending, with gaps between
//!  …
//!  BLAKE3 of everything before (32)
//! ```

use std::io::{self, Read as _};
use std::ops::Range;

use super::Digest;
use super::memory::MAX_MEMORY_MIB;

/// Name of the file beside the memory.
pub const FILE_NAME: &str = "memory-map";

/// First bytes of the file.
pub const MAGIC: [u8; 8] = *b"SNAPPM\r\n";
/// Version that this build writes and reads.
pub const VERSION: u16 = 1;

const HEADER_LEN: usize = 14;
const RUN_LEN: usize = 8;
/// Every second page of the largest memory begins a run.
const MAX_RUNS: u64 = MAX_MEMORY_MIB as u64 * 128;
/// Longest file, in bytes.
pub const MAX_LEN: u64 = 14 + 8 * MAX_RUNS + 32;

// A change to any of these is a new format.
const _: () = {
    assert!(VERSION == 1);
    assert!(HEADER_LEN == MAGIC.len() + 2 + 4);
    assert!(RUN_LEN == 4 + 4);
    assert!(MAX_RUNS == 0x20_0000);
    assert!(MAX_LEN == 0x100_002e);
};

/// Pages of a memory, as runs in ascending order that do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageMap {
    runs: Vec<Range<u32>>,
}

/// A page map was refused.
#[derive(Debug, thiserror::Error)]
pub enum PageMapError {
    /// The file gave no bytes.
    #[error("the page map cannot be read")]
    Io(#[source] io::Error),
    /// It is longer than a map of this memory can be.
    #[error("the page map is longer than its memory allows")]
    TooLong,
    /// The file ends too early or too late.
    #[error("the page map is cut short, or bytes follow it")]
    Length,
    /// It is something else.
    #[error("the page map does not begin as one")]
    Magic,
    /// It was written by another version.
    #[error("the page map has version {0}; this build reads version {VERSION}")]
    Version(u16),
    /// The hash is another.
    #[error("the page map's hash does not match")]
    Hash,
    /// A run is empty, out of order or beyond the memory's end.
    #[error("run {0} of the page map is empty, out of order or beyond the memory's end")]
    Run(usize),
}

impl PageMap {
    /// Adds a page after all that there are.
    pub(super) fn push(&mut self, page: u32) {
        match self.runs.last_mut() {
            Some(last) if last.end == page => last.end = page.saturating_add(1),
            _ => self.runs.push(page..page.saturating_add(1)),
        }
    }

    /// The runs of pages, ascending.
    #[must_use]
    pub fn runs(&self) -> &[Range<u32>] {
        &self.runs
    }

    /// How many pages there are.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs
            .iter()
            .map(|run| u64::from(run.end - run.start))
            .sum()
    }

    /// The run that holds `page`, or else the next one after it.
    #[must_use]
    pub fn at_or_after(&self, page: u64) -> Option<Range<u64>> {
        let next = self.runs.partition_point(|run| u64::from(run.end) <= page);
        let run = self.runs.get(next)?;
        Some(u64::from(run.start)..u64::from(run.end))
    }

    /// The file's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let count = u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&count.to_le_bytes());
        for run in &self.runs {
            bytes.extend_from_slice(&run.start.to_le_bytes());
            bytes.extend_from_slice(&(run.end - run.start).to_le_bytes());
        }
        let hash = Digest::of(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        bytes
    }

    /// Reads and checks the map of a memory of `pages` pages.
    ///
    /// # Errors
    /// When it cannot be read or is not valid; nothing longer than a map of this
    /// memory can be is ever allocated.
    pub fn read(file: impl io::Read, pages: u64) -> Result<Self, PageMapError> {
        let longest = longest(pages);
        let mut bytes = Vec::new();
        file.take(longest + 1)
            .read_to_end(&mut bytes)
            .map_err(PageMapError::Io)?;
        Self::from_bytes(&bytes, pages)
    }

    /// Checks the map of a memory of `pages` pages.
    ///
    /// # Errors
    /// When it is not valid.
    pub fn from_bytes(bytes: &[u8], pages: u64) -> Result<Self, PageMapError> {
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > longest(pages) {
            return Err(PageMapError::TooLong);
        }
        let (body, hash) = bytes
            .split_last_chunk::<{ Digest::LEN }>()
            .ok_or(PageMapError::Length)?;
        let (header, mut rest) = body
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(PageMapError::Length)?;
        if header[..8] != MAGIC {
            return Err(PageMapError::Magic);
        }
        let version = u16::from_le_bytes([header[8], header[9]]);
        if version != VERSION {
            return Err(PageMapError::Version(version));
        }
        if Digest::of(body).as_bytes() != hash {
            return Err(PageMapError::Hash);
        }
        let count = u32::from_le_bytes([header[10], header[11], header[12], header[13]]);
        if usize::try_from(count)
            .ok()
            .and_then(|n| n.checked_mul(RUN_LEN))
            != Some(rest.len())
        {
            return Err(PageMapError::Length);
        }
        let mut runs: Vec<Range<u32>> = Vec::with_capacity(rest.len() / RUN_LEN);
        while let Some((run, more)) = rest.split_first_chunk::<RUN_LEN>() {
            let start = u32::from_le_bytes([run[0], run[1], run[2], run[3]]);
            let len = u32::from_le_bytes([run[4], run[5], run[6], run[7]]);
            let end = start.checked_add(len).filter(|_| len > 0);
            let end = end.filter(|end| u64::from(*end) <= pages);
            // Touching runs would be one.
            let in_order = runs.last().is_none_or(|last| last.end < start);
            match end {
                Some(end) if in_order => runs.push(start..end),
                _ => return Err(PageMapError::Run(runs.len())),
            }
            rest = more;
        }
        Ok(Self { runs })
    }
}

/// Longest map of a memory of `pages` pages, in bytes.
fn longest(pages: u64) -> u64 {
    MAX_LEN.min(14 + 8 * pages.div_ceil(2) + 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(pages: impl IntoIterator<Item = u32>) -> PageMap {
        let mut map = PageMap::default();
        pages.into_iter().for_each(|page| map.push(page));
        map
    }

    /// The bytes of a map with these runs, whatever they are.
    fn bytes(runs: &[(u32, u32)]) -> Vec<u8> {
        let mut bytes = map([]).to_bytes();
        bytes.truncate(10);
        bytes.extend_from_slice(&u32::try_from(runs.len()).unwrap().to_le_bytes());
        for (start, len) in runs {
            bytes.extend_from_slice(&start.to_le_bytes());
            bytes.extend_from_slice(&len.to_le_bytes());
        }
        let hash = Digest::of(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        bytes
    }

    #[test]
    fn a_map_survives_its_bytes() {
        let map = map([0, 1, 2, 7, 9, 10]);
        assert_eq!(map.runs(), [0..3, 7..8, 9..11]);
        assert_eq!(map.pages(), 6);
        assert_eq!(map.to_bytes(), bytes(&[(0, 3), (7, 1), (9, 2)]));
        assert_eq!(PageMap::read(&map.to_bytes()[..], 11).unwrap(), map);
        assert_eq!(map.at_or_after(2), Some(0..3));
        assert_eq!(map.at_or_after(3), Some(7..8));
        assert_eq!(map.at_or_after(11), None);
    }

    #[test]
    fn runs_that_make_no_sense_are_refused_by_number() {
        let cases: [(&[(u32, u32)], usize); 6] = [
            (&[(0, 0)], 0),
            (&[(0, 2), (2, 1)], 1),
            (&[(0, 2), (1, 3)], 1),
            (&[(5, 1), (0, 1)], 1),
            (&[(0, 1), (63, 2)], 1),
            (&[(u32::MAX, 2)], 0),
        ];
        for (runs, number) in cases {
            let error = PageMap::from_bytes(&bytes(runs), 64).unwrap_err();
            assert!(
                matches!(error, PageMapError::Run(at) if at == number),
                "{runs:?}: {error}"
            );
        }
    }

    #[test]
    fn a_map_that_is_longer_than_its_memory_allows_is_not_read() {
        let long = io::repeat(0);
        let error = PageMap::read(long, 16).unwrap_err();
        assert!(matches!(error, PageMapError::TooLong), "{error}");
        let version = {
            let mut bytes = map([1]).to_bytes();
            bytes[8] = 2;
            bytes
        };
        let error = PageMap::from_bytes(&version, 16).unwrap_err();
        assert!(matches!(error, PageMapError::Version(2)), "{error}");
    }

    proptest! {
        #[test]
        fn any_damage_is_refused_or_changes_nothing(
            at in any::<prop::sample::Index>(), value: u8, cut in any::<prop::sample::Index>(),
        ) {
            let whole = map([3, 4, 9]).to_bytes();
            let mut bad = whole.clone();
            let at = at.index(bad.len());
            bad[at] = value;
            bad.truncate(cut.index(whole.len()) + 1);
            prop_assert_eq!(PageMap::from_bytes(&bad, 16).is_ok(), bad == whole);
        }

        #[test]
        fn any_runs_with_a_right_hash_are_read_or_refused(
            runs in prop::collection::vec((0_u32..40, 0_u32..6), 0..6),
        ) {
            if let Ok(map) = PageMap::from_bytes(&bytes(&runs), 32) {
                prop_assert_eq!(map.to_bytes(), bytes(&runs));
                prop_assert!(map.pages() <= 32);
            }
        }
    }
}
