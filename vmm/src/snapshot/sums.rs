//! A sum of each page of a memory whose hashes were checked.
//!
//! The hashes are of 2 MiB each: good for an import, and far too much to read for one
//! page. What is read of a memory file later, a page at a time, is compared with these.
//! They find damage (a disk that fails, a file cut or changed since), not forgery: who can
//! write the agent's files can do worse. In memory only, 4 bytes for each page.

use std::num::NonZeroU32;

use crate::memory::PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;

static ZEROES: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// The sums of all pages; `None` for a page of zeroes.
#[derive(Debug)]
pub struct PageSums(Vec<Option<NonZeroU32>>);

/// A page is not what it was when the snapshot's hashes were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the page at {offset:#x} of the snapshot's memory is damaged")]
pub struct DamagedPage {
    /// Where it is in the memory, in bytes.
    pub offset: u64,
}

impl PageSums {
    /// Those of a memory of `len` bytes that is all zero.
    #[must_use]
    pub fn zeroes(len: u64) -> Self {
        let pages = usize::try_from(len.div_ceil(PAGE)).unwrap_or(usize::MAX);
        Self(vec![None; pages])
    }

    /// Notes the pages of `bytes`, which begin at `offset` (bytes, at a page).
    pub(super) fn note(&mut self, offset: u64, bytes: &[u8]) {
        let first = usize::try_from(offset / PAGE).unwrap_or(usize::MAX);
        let known = self.0.iter_mut().skip(first);
        for (known, page) in known.zip(bytes.chunks(PAGE_SIZE)) {
            *known = sum(page);
        }
    }

    /// Checks the pages of `bytes`, which begin at `offset` (bytes, at a page).
    ///
    /// # Errors
    /// Names the first page that is another one.
    pub fn check(&self, offset: u64, bytes: &[u8]) -> Result<(), DamagedPage> {
        let first = usize::try_from(offset / PAGE).unwrap_or(usize::MAX);
        for (index, page) in (first..).zip(bytes.chunks(PAGE_SIZE)) {
            if self.0.get(index).is_none_or(|known| *known != sum(page)) {
                let offset = u64::try_from(index)
                    .unwrap_or(u64::MAX)
                    .saturating_mul(PAGE);
                return Err(DamagedPage { offset });
            }
        }
        Ok(())
    }

    /// Where the next page at or after `offset` (bytes) is that is not all zero.
    #[must_use]
    pub fn data_after(&self, offset: u64) -> Option<u64> {
        let first = usize::try_from(offset / PAGE).ok()?;
        let mut pages = self.0.iter().skip(first);
        let page = first + pages.position(Option::is_some)?;
        Some((u64::try_from(page).ok()? * PAGE).max(offset))
    }
}

fn sum(page: &[u8]) -> Option<NonZeroU32> {
    if page == &ZEROES[..page.len()] {
        return None;
    }
    // A sum of zero counts as 1: the place for it is taken.
    NonZeroU32::new(crc32fast::hash(page)).or(Some(NonZeroU32::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_is_found_and_zeroes_are_no_exception() {
        let mut bytes = vec![0; 4 * PAGE_SIZE];
        bytes[PAGE_SIZE..2 * PAGE_SIZE].fill(7);
        let mut sums = PageSums::zeroes(10 * PAGE);
        sums.note(2 * PAGE, &bytes);
        sums.check(2 * PAGE, &bytes).unwrap();
        sums.check(0, &bytes[..PAGE_SIZE]).unwrap();
        for at in (0..bytes.len()).step_by(101) {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                let page = 2 * PAGE + u64::try_from(at / PAGE_SIZE).unwrap() * PAGE;
                assert_eq!(
                    sums.check(2 * PAGE, &bytes),
                    Err(DamagedPage { offset: page })
                );
                bytes[at] ^= 1 << bit;
            }
        }
        // A page that became a hole.
        bytes.fill(0);
        let offset = 3 * PAGE;
        assert_eq!(sums.check(2 * PAGE, &bytes), Err(DamagedPage { offset }));
        // Beyond the end nothing is known.
        let offset = 10 * PAGE;
        assert_eq!(sums.check(offset, &bytes), Err(DamagedPage { offset }));
    }

    #[test]
    fn data_is_where_a_page_is_not_zero() {
        let mut sums = PageSums::zeroes(10 * PAGE);
        assert_eq!(sums.data_after(0), None);
        sums.note(5 * PAGE, &[1; PAGE_SIZE]);
        for (from, expected) in [
            (0, Some(5 * PAGE)),
            (5 * PAGE, Some(5 * PAGE)),
            (5 * PAGE + 3, Some(5 * PAGE + 3)),
            (6 * PAGE, None),
            (99 * PAGE, None),
        ] {
            assert_eq!(sums.data_after(from), expected, "{from}");
        }
    }
}
