//! A set of guest pages: one bit per page and memory slot, and one for each word of those,
//! so that going through a few pages costs the same in a large memory.

use std::ops::Range;

/// Pages of a machine's memory, by slot and index.
#[derive(Debug, Clone)]
pub struct PageSet {
    slots: Vec<Slot>,
    count: u64,
}

#[derive(Debug, Clone)]
struct Slot {
    pages: usize,
    words: Vec<u64>,
    /// Words that are not zero.
    marks: Vec<u64>,
}

/// Pages of one word.
pub(super) const BITS: usize = 64;

impl PageSet {
    /// An empty set for slots of so many pages.
    pub fn new(pages_per_slot: impl IntoIterator<Item = usize>) -> Self {
        let slot = |pages: usize| {
            let words = pages.div_ceil(BITS);
            Slot {
                pages,
                words: vec![0; words],
                marks: vec![0; words.div_ceil(BITS)],
            }
        };
        Self {
            slots: pages_per_slot.into_iter().map(slot).collect(),
            count: 0,
        }
    }

    /// Adds the pages of a word of `slot`'s bitmap; bits past the slot's end are ignored.
    pub fn insert_word(&mut self, slot: u16, index: usize, word: u64) {
        let Some(slot) = self.slots.get_mut(usize::from(slot)) else {
            return;
        };
        let Some(into) = slot.words.get_mut(index) else {
            return;
        };
        let left = slot.pages - index * BITS;
        let mask = if left >= BITS {
            u64::MAX
        } else {
            (1 << left) - 1
        };
        let new = word & mask & !*into;
        if let Some(mark) = slot.marks.get_mut(index / BITS)
            && new != 0
        {
            *mark |= 1 << (index % BITS);
            *into |= new;
            self.count += u64::from(new.count_ones());
        }
    }

    /// How many pages are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Calls `each` with the words that are not zero, by slot and index.
    pub(super) fn each_word(&self, mut each: impl FnMut(u16, usize, u64)) {
        for (number, slot) in (0_u16..).zip(&self.slots) {
            for (index, word) in slot.words() {
                each(number, index, word);
            }
        }
    }

    /// Calls `each` with the pages in order, as slot and indices of neighbours.
    ///
    /// # Errors
    /// The first one of `each`.
    pub fn each_run<E>(
        &self,
        mut each: impl FnMut(u16, Range<usize>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (number, slot) in (0_u16..).zip(&self.slots) {
            let mut run = 0..0;
            for (index, word) in slot.words() {
                let mut left = word;
                while left != 0 {
                    let from = left.trailing_zeros();
                    let ones = (!(left >> from)).trailing_zeros();
                    let first = index * BITS + number_of(from);
                    let end = first + number_of(ones);
                    if first == run.end {
                        run.end = end;
                    } else {
                        let before = std::mem::replace(&mut run, first..end);
                        if !before.is_empty() {
                            each(number, before)?;
                        }
                    }
                    left &= u64::MAX.checked_shl(from + ones).unwrap_or(0);
                }
            }
            if !run.is_empty() {
                each(number, run)?;
            }
        }
        Ok(())
    }
}

impl Slot {
    /// The words that are not zero, by index.
    fn words(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let marks = self.marks.iter().enumerate();
        marks.flat_map(move |(at, &mark)| {
            bits(mark).filter_map(move |bit| {
                let index = at * BITS + bit;
                Some((index, *self.words.get(index)?))
            })
        })
    }
}

/// The bits of a word that are set.
pub(super) fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros();
        word &= word - 1;
        Some(number_of(bit))
    })
}

/// A number of bits.
fn number_of(bits: u32) -> usize {
    usize::try_from(bits).unwrap_or(BITS)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn runs(set: &PageSet) -> Vec<(u16, Range<usize>)> {
        let mut all = Vec::new();
        let Ok(()) = set.each_run(|slot, run| {
            all.push((slot, run));
            Ok::<_, Infallible>(())
        });
        all
    }

    #[test]
    fn a_page_counts_once_and_neighbours_are_one_run() {
        let mut set = PageSet::new([330, 10]);
        assert!(set.is_empty() && runs(&set).is_empty());
        set.insert_word(1, 0, 1 << 9);
        set.insert_word(0, 2, 0b10);
        set.insert_word(0, 2, 0b10);
        set.insert_word(0, 0, 1);
        assert_eq!(set.len(), 3);
        assert_eq!(runs(&set), [(0, 0..1), (0, 129..130), (1, 9..10)]);
        set.insert_word(0, 0, 0b10 | 3 << 62);
        set.insert_word(0, 1, u64::MAX);
        assert_eq!(
            runs(&set),
            [(0, 0..2), (0, 62..128), (0, 129..130), (1, 9..10)]
        );
        set.insert_word(0, 2, 1);
        assert_eq!(runs(&set)[1], (0, 62..130));
        assert_eq!(set.len(), 71);
    }

    #[test]
    fn the_first_error_ends_it() {
        let mut set = PageSet::new([64]);
        set.insert_word(0, 0, 0b10101);
        let mut seen = 0;
        let ended = set.each_run(|_, run| {
            seen += 1;
            if run.start == 2 { Err("two") } else { Ok(()) }
        });
        assert_eq!((ended, seen), (Err("two"), 2));
    }

    #[test]
    fn pages_that_do_not_exist_are_left_out() {
        let mut set = PageSet::new([70]);
        set.insert_word(0, 0, 1);
        set.insert_word(0, 1, u64::MAX);
        set.insert_word(0, 2, 1);
        set.insert_word(3, 0, 1);
        assert_eq!(set.len(), 7);
        assert_eq!(runs(&set), [(0, 0..1), (0, 64..70)]);
    }
}
