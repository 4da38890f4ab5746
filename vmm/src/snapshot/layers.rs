//! A memory that lies in one file, or in a whole one and diffs on top of it.
//!
//! ```text
//!  the newest diff   · · ██ · ·    pages in its map: from its file
//!  …
//!  the whole memory  ██████████    everything else
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::page_map::PageMap;
use crate::memory::PAGE_SIZE;
use crate::sys::memfd;

/// Most diffs on top of a whole memory.
pub const MAX_DIFFS: usize = 4;
const _: () = assert!(MAX_DIFFS == 4);

const PAGE: u64 = PAGE_SIZE as u64;

/// The memory of a snapshot, to be read anywhere.
#[derive(Debug, Clone)]
pub struct Layers {
    len: u64,
    whole: Arc<File>,
    /// The newest last.
    diffs: Vec<(Arc<PageMap>, Arc<File>)>,
}

/// A layer cannot be put on others.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The file's length cannot be had.
    #[error("the memory file cannot be read")]
    Io(#[source] io::Error),
    /// The file is of another length.
    #[error("the memory file has {found} bytes instead of {expected}")]
    Length {
        /// Of the file, in bytes.
        found: u64,
        /// Of the memory, in bytes.
        expected: u64,
    },
    /// There are too many.
    #[error("there are more than {MAX_DIFFS} diffs on top of one another")]
    TooMany,
}

impl Layers {
    /// A memory of `len` bytes in one file.
    ///
    /// # Errors
    /// When the file has another length.
    pub fn whole(file: File, len: u64) -> Result<Self, LayerError> {
        check_len(&file, len)?;
        Ok(Self {
            len,
            whole: Arc::new(file),
            diffs: Vec::new(),
        })
    }

    /// This memory with another layer: the pages in `map` are `file`'s.
    ///
    /// # Errors
    /// When the file has another length, or there are too many diffs.
    pub fn with(&self, map: PageMap, file: File) -> Result<Self, LayerError> {
        check_len(&file, self.len)?;
        if self.diffs.len() >= MAX_DIFFS {
            return Err(LayerError::TooMany);
        }
        let mut layers = self.clone();
        layers.diffs.push((Arc::new(map), Arc::new(file)));
        Ok(layers)
    }

    /// Length of the memory, in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no memory at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many diffs there are.
    #[must_use]
    pub const fn diffs(&self) -> usize {
        self.diffs.len()
    }

    /// Fills all of `bytes` from `offset` (bytes) on.
    ///
    /// # Errors
    /// When a file cannot be read, or `UnexpectedEof` beyond the end.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_below(self.diffs.len(), offset, bytes)
    }

    /// As [`Self::read_at`], of the lowest `depth` diffs.
    fn read_below(&self, depth: usize, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let Some((below, (map, file))) = depth
            .checked_sub(1)
            .and_then(|below| Some((below, self.diffs.get(below)?)))
        else {
            return self.whole.read_exact_at(bytes, offset);
        };
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let left = u64::try_from(rest.len()).map_err(io::Error::other)?;
            let run = map.at_or_after(at / PAGE);
            // What lies before the run is not this layer's; without one, nothing is.
            let (own, end) = match run {
                Some(run) if run.start * PAGE <= at => (true, run.end * PAGE),
                Some(run) => (false, run.start * PAGE),
                None => (false, u64::MAX),
            };
            let count = usize::try_from((end - at).min(left)).map_err(io::Error::other)?;
            let (here, more) = rest.split_at_mut(count);
            if own {
                file.read_exact_at(here, at)?;
            } else {
                self.read_below(below, at, here)?;
            }
            at += u64::try_from(count).map_err(io::Error::other)?;
            rest = more;
        }
        Ok(())
    }

    /// Where the next data at or after `offset` begins, in any file; `u64::MAX` when
    /// there is none. Everything before it reads as zeroes. The files' offsets are
    /// moved.
    ///
    /// # Errors
    /// When a file cannot tell.
    pub fn data_after(&self, offset: u64) -> io::Result<u64> {
        let files = self.diffs.iter().map(|(_, file)| file);
        files
            .chain([&self.whole])
            .try_fold(u64::MAX, |first, file| {
                let data = memfd::data_after(file, offset, self.len)?;
                Ok(data.map_or(first, |data| first.min(data.start)))
            })
    }
}

fn check_len(file: &File, expected: u64) -> Result<(), LayerError> {
    let found = file.metadata().map_err(LayerError::Io)?.len();
    if found == expected {
        Ok(())
    } else {
        Err(LayerError::Length { found, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = 8;

    /// A file whose page `n` is full of `base + n`, for the pages named; holes else.
    fn file(base: u8, pages: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGES * PAGE).unwrap();
        for page in pages {
            file.write_all_at(&[base + page; PAGE_SIZE], u64::from(*page) * PAGE)
                .unwrap();
        }
        file
    }

    fn map(pages: &[u32]) -> PageMap {
        let mut map = PageMap::default();
        pages.iter().for_each(|page| map.push(*page));
        map
    }

    fn layers() -> Layers {
        let whole = Layers::whole(file(0x10, &[0, 1, 2, 3, 4]), PAGES * PAGE).unwrap();
        // Page 2 became zero, page 6 was zero before.
        let middle = whole.with(map(&[1, 2, 6]), file(0x20, &[1, 6])).unwrap();
        middle.with(map(&[1, 7]), file(0x30, &[1, 7])).unwrap()
    }

    #[test]
    fn the_newest_layer_that_defines_a_page_wins() {
        let layers = layers();
        let mut bytes = vec![0xee; usize::try_from(PAGES * PAGE).unwrap()];
        layers.read_at(0, &mut bytes).unwrap();
        let firsts: Vec<u8> = bytes.chunks(PAGE_SIZE).map(|page| page[0]).collect();
        assert_eq!(firsts, [0x10, 0x31, 0, 0x13, 0x14, 0, 0x26, 0x37]);
        assert!(
            bytes
                .chunks(PAGE_SIZE)
                .all(|page| page.iter().all(|byte| *byte == page[0]))
        );
    }

    #[test]
    fn any_part_can_be_read_alone() {
        let layers = layers();
        let mut all = vec![0; usize::try_from(PAGES * PAGE).unwrap()];
        layers.read_at(0, &mut all).unwrap();
        for (offset, len) in [(0, 1), (4095, 2), (5000, 9000), (0x6fff, 0x1001)] {
            let mut part = vec![0xee; len];
            layers.read_at(offset, &mut part).unwrap();
            let start = usize::try_from(offset).unwrap();
            assert!(part == all[start..start + len], "{offset}");
        }
        let mut beyond = [0; 2];
        assert!(layers.read_at(PAGES * PAGE - 1, &mut beyond).is_err());
    }

    #[test]
    fn layers_of_another_length_and_towers_are_refused() {
        let whole = Layers::whole(file(0, &[]), PAGES * PAGE).unwrap();
        let short = tempfile::tempfile().unwrap();
        let error = whole.with(map(&[]), short).unwrap_err();
        assert!(
            matches!(error, LayerError::Length { found: 0, .. }),
            "{error}"
        );
        let tower = (0..MAX_DIFFS).fold(whole, |tower, _| {
            tower.with(map(&[]), file(0, &[])).unwrap()
        });
        let error = tower.with(map(&[]), file(0, &[])).unwrap_err();
        assert!(matches!(error, LayerError::TooMany), "{error}");
    }
}
