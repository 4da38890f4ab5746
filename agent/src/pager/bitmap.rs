//! One bit per page, set by many threads and never cleared.

use std::sync::atomic::{AtomicU64, Ordering};

/// A set of page numbers that only grows.
#[derive(Debug)]
pub struct Bitmap {
    words: Box<[AtomicU64]>,
    len: u64,
}

impl Bitmap {
    /// An empty set of page numbers below `len`.
    #[must_use]
    pub fn new(len: u64) -> Self {
        let words = (0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, len }
    }

    /// How many page numbers there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no page numbers at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a page is in the set. What was written to it before [`Self::set`]
    /// is visible to whoever sees `true`.
    #[must_use]
    pub fn get(&self, page: u64) -> bool {
        self.word(page)
            .is_some_and(|word| word.load(Ordering::Acquire) & bit(page) != 0)
    }

    /// Adds a page; numbers beyond the end are ignored.
    pub fn set(&self, page: u64) {
        if let Some(word) = self.word(page) {
            word.fetch_or(bit(page), Ordering::Release);
        }
    }

    /// How many pages are in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        let ones = |word: &AtomicU64| u64::from(word.load(Ordering::Relaxed).count_ones());
        self.words.iter().map(ones).sum()
    }

    fn word(&self, page: u64) -> Option<&AtomicU64> {
        if page >= self.len {
            return None;
        }
        self.words.get(usize::try_from(page / 64).ok()?)
    }
}

const fn bit(page: u64) -> u64 {
    1 << (page % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_beyond_the_end_are_never_in() {
        let bitmap = Bitmap::new(65);
        for page in [0, 63, 64, 65, u64::MAX] {
            bitmap.set(page);
        }
        assert_eq!(bitmap.count(), 3);
        assert!(bitmap.get(64) && !bitmap.get(65) && !bitmap.get(1));
    }

    #[test]
    fn threads_do_not_lose_each_others_pages() {
        let bitmap = Bitmap::new(4096);
        std::thread::scope(|scope| {
            for start in 0..4 {
                let bitmap = &bitmap;
                scope.spawn(move || (start..4096).step_by(4).for_each(|page| bitmap.set(page)));
            }
        });
        assert_eq!(bitmap.count(), 4096);
    }
}
