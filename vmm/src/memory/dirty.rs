//! Which pages of a guest were written since its snapshot, by KVM's word.
//!
//! Seeing a write costs more than copying a page: the page is write-protected, and its
//! next write is a fault. So a page that requests keep writing is left unprotected: KVM
//! goes on naming it, and every reset copies it.
//!
//! ```text
//!          written between two resets, twice running, and there is room
//!    cold ───────────────────────────────────────────────────────────────► hot
//!     ▲                                                                     │
//!     └─────────────────────────────────────────────────────────────────────┘
//!                  every 64th reset: protected again, to see
//! ```
//!
//! Nothing depends on a page being on the right side: a hot page is always named, and a
//! cold one whenever it was written.

use std::io;

use kvm_ioctls::VmFd;

use super::PageSet;
use super::pages::ones;
use crate::sys::dirty_log::{self, PAGES_PER_WORD};

/// Most hot pages of a machine: what one request can make later resets copy in vain.
pub const MAX_HOT: usize = 1024;
/// After so many resets every hot page has been cold once.
const TURNS: usize = 64;

/// The dirty bitmaps of a machine's memory slots.
#[derive(Debug)]
pub struct DirtyPages {
    slots: Vec<Slot>,
    /// Which words' turn it is to be cold.
    turn: usize,
    hot: usize,
}

#[derive(Debug)]
struct Slot {
    pages: usize,
    /// Written since the last reset, or hot.
    named: Vec<u64>,
    /// What was named at the last reset.
    before: Vec<u64>,
    hot: Vec<u64>,
    /// What is to be protected again.
    clear: Vec<u64>,
}

impl DirtyPages {
    /// For slots of so many pages, all cold.
    pub fn new(pages_per_slot: impl IntoIterator<Item = usize>) -> Self {
        let slot = |pages: usize| {
            let none = vec![0; pages.div_ceil(PAGES_PER_WORD)];
            Slot {
                pages,
                named: none.clone(),
                before: none.clone(),
                hot: none.clone(),
                clear: none,
            }
        };
        Self {
            slots: pages_per_slot.into_iter().map(slot).collect(),
            turn: 0,
            hot: 0,
        }
    }

    /// Adds the pages that have to be copied to `into` and protects the cold ones again.
    /// They must be copied afterwards: a write between the two is not named again.
    /// Returns how many there were.
    ///
    /// # Errors
    /// What KVM reports.
    pub fn collect(&mut self, vm: &VmFd, into: &mut PageSet) -> io::Result<u64> {
        self.turn = (self.turn + 1) % TURNS;
        let mut count = 0;
        for (number, slot) in (0_u16..).zip(&mut self.slots) {
            dirty_log::read(vm, number, slot.pages, &mut slot.named)?;
            slot.sort(self.turn, &mut self.hot);
            if let Some((first, words)) = slot.to_clear() {
                dirty_log::clear(vm, number, slot.pages, first, words)?;
            }
            count += ones(&slot.named);
            into.insert_words(number, &slot.named);
        }
        Ok(count)
    }

    /// How many pages are hot.
    #[must_use]
    pub fn hot(&self) -> usize {
        self.hot
    }
}

impl Slot {
    /// Decides for each page that is named whether it is hot from now on.
    fn sort(&mut self, turn: usize, hot: &mut usize) {
        let words = self.named.iter().zip(&mut self.before);
        let words = words.zip(self.hot.iter_mut().zip(&mut self.clear));
        for (index, ((named, before), (is_hot, clear))) in words.enumerate() {
            if *named == 0 {
                (*before, *clear) = (0, 0);
                continue;
            }
            if index % TURNS == turn {
                *hot -= count(*is_hot);
                (*is_hot, *before) = (0, 0);
            } else {
                let new = named & *before & !*is_hot;
                if *hot + count(new) <= MAX_HOT {
                    *hot += count(new);
                    *is_hot |= new;
                }
                *before = *named;
            }
            *clear = named & !*is_hot;
        }
    }

    /// From the first word with something to clear to the last one, and where it begins.
    fn to_clear(&self) -> Option<(usize, &[u64])> {
        let first = self.clear.iter().position(|word| *word != 0)?;
        let last = self.clear.iter().rposition(|word| *word != 0)?;
        Some((first, self.clear.get(first..=last)?))
    }
}

fn count(word: u64) -> usize {
    usize::try_from(word.count_ones()).unwrap_or(PAGES_PER_WORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slot, and what KVM would do with it.
    struct Kvm(Slot, usize);

    impl Kvm {
        fn new(pages: usize) -> Self {
            let mut dirty = DirtyPages::new([pages]);
            Self(dirty.slots.pop().unwrap(), 0)
        }

        /// A request that writes `pages`, then a reset. Returns which were copied and how
        /// many of them are hot.
        fn request(&mut self, turn: usize, pages: &[usize]) -> (Vec<usize>, usize) {
            let Self(slot, hot) = self;
            for page in pages {
                slot.named[page / 64] |= 1 << (page % 64);
            }
            slot.sort(turn, hot);
            let copied = (0..slot.pages)
                .filter(|page| slot.named[page / 64] >> (page % 64) & 1 == 1)
                .collect();
            for (named, clear) in slot.named.iter_mut().zip(&slot.clear) {
                *named &= !clear;
            }
            (copied, *hot)
        }
    }

    #[test]
    fn a_page_that_requests_keep_writing_is_hot_and_always_copied() {
        let mut kvm = Kvm::new(200);
        assert_eq!(kvm.request(1, &[3, 150]), (vec![3, 150], 0));
        assert_eq!(kvm.request(1, &[3]), (vec![3], 1));
        assert_eq!(kvm.request(1, &[]), (vec![3], 1), "though nobody wrote it");
        assert_eq!(kvm.request(1, &[150]), (vec![3, 150], 1));
    }

    #[test]
    fn a_hot_page_that_nobody_writes_any_more_becomes_cold() {
        let mut kvm = Kvm::new(200);
        kvm.request(1, &[3]);
        kvm.request(1, &[3]);
        assert_eq!(kvm.request(0, &[]), (vec![3], 0), "the turn of word 0");
        assert_eq!(kvm.request(1, &[]), (vec![], 0));
        // One that is still written needs two requests to be hot again.
        kvm.request(1, &[3]);
        assert_eq!(kvm.request(1, &[3]), (vec![3], 1));
    }

    #[test]
    fn hot_pages_are_bounded_and_the_others_are_copied_when_written() {
        let mut kvm = Kvm::new(4096);
        let all: Vec<usize> = (0..4096).collect();
        kvm.request(99, &all);
        let (copied, hot) = kvm.request(99, &all);
        assert_eq!((copied.len(), hot), (4096, MAX_HOT));
        let (copied, hot) = kvm.request(99, &[]);
        assert_eq!((copied.len(), hot), (MAX_HOT, MAX_HOT));
    }

    #[test]
    fn only_words_with_something_to_clear_are_cleared() {
        let mut kvm = Kvm::new(64 * 5);
        kvm.request(9, &[64, 200]);
        let (first, words) = kvm.0.to_clear().unwrap();
        assert_eq!((first, words), (1, &[1, 0, 1 << 8][..]));
        kvm.request(9, &[]);
        assert_eq!(kvm.0.to_clear(), None);
    }
}
