//! Which pages the VMM's devices wrote: one bit for each, and one for each word of
//! those, so that looking for a few bits costs the same in a large memory.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use super::PAGE_SIZE;
use super::pages::{BITS, bits};

/// The pages of one region that devices wrote.
#[derive(Debug, Default)]
pub struct DeviceWrites {
    pages: usize,
    words: Box<[AtomicU64]>,
    /// Words that are not zero.
    marks: Box<[AtomicU64]>,
}

impl DeviceWrites {
    /// Takes all bits out, and hands over the words that were not zero, by index. What
    /// is written meanwhile is handed over now or stays for the next time.
    pub fn take(&self, mut each: impl FnMut(usize, u64)) {
        for (at, mark) in self.marks.iter().enumerate() {
            // Reading costs a fraction of an exchange, and most are zero.
            if mark.load(Ordering::Acquire) == 0 {
                continue;
            }
            for bit in bits(mark.swap(0, Ordering::AcqRel)) {
                let index = at * BITS + bit;
                if let Some(word) = self.words.get(index) {
                    each(index, word.swap(0, Ordering::AcqRel));
                }
            }
        }
    }

    fn mark(&self, page: usize) {
        let (word, bit) = (page / BITS, 1 << (page % BITS));
        let (mark, of_word) = (word / BITS, 1 << (word % BITS));
        // The mark comes last: whoever takes it finds the bit.
        if let (Some(word), Some(mark)) = (self.words.get(word), self.marks.get(mark)) {
            word.fetch_or(bit, Ordering::AcqRel);
            mark.fetch_or(of_word, Ordering::AcqRel);
        }
    }
}

impl NewBitmap for DeviceWrites {
    fn with_len(len: usize) -> Self {
        let pages = len.div_ceil(PAGE_SIZE);
        let words = pages.div_ceil(BITS);
        let zeros = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            pages,
            words: zeros(words),
            marks: zeros(words.div_ceil(BITS)),
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DeviceWrites {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DeviceWrites {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(last) = len.checked_sub(1) else {
            return;
        };
        let last = offset.saturating_add(last) / PAGE_SIZE;
        for page in offset / PAGE_SIZE..=last.min(self.pages) {
            self.mark(page);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE;
        let word = self.words.get(page / BITS);
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (page % BITS) & 1 == 1)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(writes: &DeviceWrites) -> Vec<(usize, u64)> {
        let mut all = Vec::new();
        writes.take(|index, word| all.push((index, word)));
        all
    }

    #[test]
    fn what_was_written_is_handed_over_once() {
        let writes = DeviceWrites::with_len(5000 * PAGE_SIZE);
        assert_eq!(taken(&writes), []);
        writes.mark_dirty(63 * PAGE_SIZE + 5, PAGE_SIZE);
        writes.mark_dirty(4999 * PAGE_SIZE, 1);
        writes.mark_dirty(7, 0);
        assert!(writes.dirty_at(64 * PAGE_SIZE) && !writes.dirty_at(65 * PAGE_SIZE));
        assert_eq!(
            taken(&writes),
            [(0, 1 << 63), (1, 1), (78, 1 << (4999 % 64))]
        );
        assert_eq!(taken(&writes), []);
        assert!(!writes.dirty_at(64 * PAGE_SIZE));
    }

    #[test]
    fn what_lies_outside_is_left_out() {
        let writes = DeviceWrites::with_len(10 * PAGE_SIZE);
        writes.mark_dirty(9 * PAGE_SIZE, usize::MAX);
        writes.mark_dirty(usize::MAX - 1, 9);
        let all = taken(&writes);
        assert!(all.iter().all(|(index, _)| *index == 0), "{all:?}");
        assert!(!writes.dirty_at(1000 * PAGE_SIZE));
    }

    #[test]
    fn a_slice_marks_the_pages_that_it_lies_on() {
        let writes = DeviceWrites::with_len(4 * PAGE_SIZE);
        let slice = writes.slice_at(2 * PAGE_SIZE);
        slice.mark_dirty(PAGE_SIZE - 1, 2);
        assert_eq!(taken(&writes), [(0, 0b1100)]);
    }
}
