//! A set of guest pages: one bit per page and memory slot.

use std::ops::Range;

/// Pages of a machine's memory, by slot and index.
#[derive(Debug, Clone)]
pub struct PageSet {
    slots: Vec<Slot>,
}

#[derive(Debug, Clone)]
struct Slot {
    pages: usize,
    words: Vec<u64>,
}

const BITS: usize = 64;

impl PageSet {
    /// An empty set for slots of so many pages.
    pub fn new(pages_per_slot: impl IntoIterator<Item = usize>) -> Self {
        let slot = |pages: usize| Slot {
            pages,
            words: vec![0; pages.div_ceil(BITS)],
        };
        Self {
            slots: pages_per_slot.into_iter().map(slot).collect(),
        }
    }

    /// Adds a page. Returns whether it exists and was not in the set before.
    pub fn insert(&mut self, slot: u16, page: usize) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(slot)) else {
            return false;
        };
        if page >= slot.pages {
            return false;
        }
        let bit = 1_u64 << (page % BITS);
        let word = &mut slot.words[page / BITS];
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Adds the pages of a bitmap of `slot`; bits past the slot's end are ignored.
    pub fn insert_words(&mut self, slot: u16, words: &[u64]) {
        let Some(slot) = self.slots.get_mut(usize::from(slot)) else {
            return;
        };
        let some = |(_, (_, from)): &(usize, (&mut u64, &u64))| **from != 0;
        let pairs = slot.words.iter_mut().zip(words).enumerate();
        for (index, (into, from)) in pairs.filter(some) {
            let left = slot.pages - index * BITS;
            let mask = if left >= BITS {
                u64::MAX
            } else {
                (1 << left) - 1
            };
            *into |= from & mask;
        }
    }

    /// How many pages are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.slots.iter().map(|slot| ones(&slot.words)).sum()
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        for slot in &mut self.slots {
            slot.words.fill(0);
        }
    }

    /// The pages in order, as slot and indices of neighbours.
    pub fn runs(&self) -> impl Iterator<Item = (u16, Range<usize>)> + '_ {
        let mut pages = self.iter().peekable();
        std::iter::from_fn(move || {
            let (slot, first) = pages.next()?;
            let mut run = first..first + 1;
            while pages.next_if_eq(&(slot, run.end)).is_some() {
                run.end += 1;
            }
            Some((slot, run))
        })
    }

    /// The pages in order, as slot and index.
    pub fn iter(&self) -> impl Iterator<Item = (u16, usize)> + '_ {
        (0_u16..).zip(&self.slots).flat_map(|(number, slot)| {
            slot.words
                .iter()
                .enumerate()
                .flat_map(move |(index, &word)| {
                    set_bits(word).map(move |bit| (number, index * BITS + bit))
                })
        })
    }
}

/// How many bits are set; most words have none.
#[must_use]
pub fn ones(words: &[u64]) -> u64 {
    let some = words.iter().filter(|word| **word != 0);
    some.map(|word| u64::from(word.count_ones())).sum()
}

fn set_bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros();
        word &= word - 1;
        usize::try_from(bit).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_counts_once_and_comes_back_in_order() {
        let mut set = PageSet::new([130, 10]);
        assert!(set.insert(1, 9));
        assert!(set.insert(0, 129));
        assert!(set.insert(0, 0));
        assert!(!set.insert(0, 129));
        assert_eq!(set.len(), 3);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(0, 0), (0, 129), (1, 9)]);
        assert!(set.insert(0, 1));
        let runs = [(0, 0..2), (0, 129..130), (1, 9..10)];
        assert_eq!(set.runs().collect::<Vec<_>>(), runs);
        set.clear();
        assert!(set.is_empty());
    }

    #[test]
    fn pages_that_do_not_exist_are_left_out() {
        let mut set = PageSet::new([70]);
        assert!(!set.insert(0, 70));
        assert!(!set.insert(1, 0));
        set.insert_words(0, &[1, u64::MAX]);
        set.insert_words(3, &[1]);
        assert_eq!(set.len(), 7);
        assert_eq!(set.iter().last(), Some((0, 69)));
    }
}
