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
//!              once in 64 resets: protected again, to see whether it is
//! ```
//!
//! The first life counts, in which KVM does not note writes: what it made the machine's own
//! was written once. With that comes what the function's first runs taught, because those
//! pages are made a machine's own ahead (see [`super::Ahead`]).
//!
//! Nothing depends on a page being on the right side: a hot page is always named, and a
//! cold one whenever it was written.

use std::io;
use std::ops::Range;

use kvm_ioctls::VmFd;

use super::PageSet;
use crate::sys::dirty_log::{self, PAGES_PER_WORD};

/// Most hot pages of a machine: what one request can make later resets copy in vain.
pub const MAX_HOT: usize = 1024;
/// Words that are looked at together.
const CHUNK: usize = 8;
/// So many resets after each other, hot pages are protected again, ...
const TURNS: usize = 8;
/// ... in so many groups, of which each is one word of so many in a row.
const GROUPS: usize = 8;

/// The dirty bitmaps of a machine's memory slots.
#[derive(Debug)]
pub struct DirtyPages {
    slots: Vec<Slot>,
    turn: Turn,
    hot: usize,
}

/// Whose turn it is to be cold. A group at a time and not at every reset: protecting
/// pages costs the more the further they lie apart.
#[derive(Debug, Default)]
struct Turn(usize);

impl Turn {
    /// The group of this reset, if one has its turn.
    fn next(&mut self) -> Option<usize> {
        self.0 = (self.0 + 1) % (TURNS * GROUPS);
        self.0.is_multiple_of(TURNS).then_some(self.0 / TURNS)
    }
}

#[derive(Debug)]
struct Slot {
    pages: usize,
    /// Written since the last reset, or hot.
    named: Vec<u64>,
    /// What was named at the last reset.
    before: Vec<u64>,
    hot: Vec<u64>,
    /// What is to be protected again; zero between two resets.
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
            turn: Turn::default(),
            hot: 0,
        }
    }

    /// These pages were written in the life that ends, of which KVM noted nothing.
    pub fn remember(&mut self, pages: &PageSet) {
        pages.each_word(|slot, index, word| {
            let slot = self.slots.get_mut(usize::from(slot));
            if let Some(before) = slot.and_then(|slot| slot.before.get_mut(index)) {
                *before = word;
            }
        });
    }

    /// Adds the pages that have to be copied to `into` and protects the cold ones again.
    /// They must be copied afterwards: a write between the two is not named again.
    ///
    /// # Errors
    /// What KVM reports.
    pub fn collect(&mut self, vm: &VmFd, into: &mut PageSet) -> io::Result<()> {
        let turn = self.turn.next();
        for (number, slot) in (0_u16..).zip(&mut self.slots) {
            dirty_log::read(vm, number, slot.pages, &mut slot.named)?;
            let to_clear = slot.sort(turn, &mut self.hot, |index, named| {
                into.insert_word(number, index, named);
            });
            let Some(words) = slot.clear.get_mut(to_clear.clone()) else {
                continue;
            };
            if !words.is_empty() {
                dirty_log::clear(vm, number, slot.pages, to_clear.start, words)?;
                words.fill(0);
            }
        }
        Ok(())
    }

    /// How many pages are hot.
    #[must_use]
    pub fn hot(&self) -> usize {
        self.hot
    }
}

impl Slot {
    /// Decides for each page that is named whether it is hot from now on, and hands each
    /// word of named pages over. Returns the words of `clear` to be used, from the first
    /// with something in it to the last; the others are zero.
    fn sort(
        &mut self,
        turn: Option<usize>,
        hot: &mut usize,
        mut each: impl FnMut(usize, u64),
    ) -> Range<usize> {
        let mut to_clear = 0..0;
        let chunks = self.named.chunks(CHUNK).zip(self.before.chunks_mut(CHUNK));
        let chunks = chunks.zip(self.hot.chunks_mut(CHUNK).zip(self.clear.chunks_mut(CHUNK)));
        for (nth, ((named, before), (is_hot, clear))) in chunks.enumerate() {
            // Most of a memory was not written, now or before.
            let any = |words: &[u64]| words.iter().fold(0, |all, word| all | word) != 0;
            if !any(named) && !any(before) {
                continue;
            }
            let words = named.iter().zip(before).zip(is_hot.iter_mut().zip(clear));
            for (at, ((named, before), (is_hot, clear))) in words.enumerate() {
                let index = nth * CHUNK + at;
                if *named == 0 {
                    *before = 0;
                    continue;
                }
                if turn == Some(index % GROUPS) {
                    *hot -= count(*is_hot);
                    (*is_hot, *before) = (0, 0);
                } else {
                    let new = named & *before & !*is_hot;
                    if new != 0 && *hot + count(new) <= MAX_HOT {
                        *hot += count(new);
                        *is_hot |= new;
                    }
                    *before = *named;
                }
                *clear = named & !*is_hot;
                if *clear != 0 {
                    to_clear = match to_clear.is_empty() {
                        true => index..index + 1,
                        false => to_clear.start..index + 1,
                    };
                }
                each(index, *named);
            }
        }
        to_clear
    }
}

fn count(word: u64) -> usize {
    usize::try_from(word.count_ones()).unwrap_or(PAGES_PER_WORD)
}

#[cfg(test)]
mod tests {
    use super::super::pages::bits;
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
        fn request(&mut self, turn: Option<usize>, pages: &[usize]) -> (Vec<usize>, usize) {
            let Self(slot, hot) = self;
            for page in pages {
                slot.named[page / 64] |= 1 << (page % 64);
            }
            let mut copied = Vec::new();
            let to_clear = slot.sort(turn, hot, |index, word| {
                copied.extend(bits(word).map(|bit| index * 64 + bit));
            });
            for index in to_clear {
                slot.named[index] &= !std::mem::take(&mut slot.clear[index]);
            }
            assert!(slot.clear.iter().all(|word| *word == 0));
            (copied, *hot)
        }
    }

    #[test]
    fn a_page_that_requests_keep_writing_is_hot_and_always_copied() {
        let mut kvm = Kvm::new(200);
        assert_eq!(kvm.request(None, &[3, 150]), (vec![3, 150], 0));
        assert_eq!(kvm.request(None, &[3]), (vec![3], 1));
        assert_eq!(
            kvm.request(None, &[]),
            (vec![3], 1),
            "though nobody wrote it"
        );
        assert_eq!(kvm.request(None, &[150]), (vec![3, 150], 1));
    }

    #[test]
    fn a_page_that_the_first_life_wrote_is_hot_when_it_is_written_once_more() {
        let mut first_life = PageSet::new([200]);
        first_life.insert_word(0, 0, 1 << 3);
        first_life.insert_word(0, 2, 1 << 22);
        let mut dirty = DirtyPages::new([200]);
        dirty.remember(&first_life);
        let mut kvm = Kvm(dirty.slots.pop().unwrap(), 0);
        assert_eq!(kvm.request(None, &[4, 150]), (vec![4, 150], 1));
        assert_eq!(kvm.request(None, &[3]), (vec![3, 150], 1));
    }

    #[test]
    fn a_hot_page_that_nobody_writes_any_more_becomes_cold() {
        let mut kvm = Kvm::new(200);
        kvm.request(None, &[3]);
        kvm.request(None, &[3]);
        assert_eq!(
            kvm.request(Some(0), &[]),
            (vec![3], 0),
            "the turn of word 0"
        );
        assert_eq!(kvm.request(None, &[]), (vec![], 0));
        // One that is still written needs two requests to be hot again.
        kvm.request(None, &[3]);
        assert_eq!(kvm.request(None, &[3]), (vec![3], 1));
    }

    #[test]
    fn hot_pages_are_bounded_and_the_others_are_copied_when_written() {
        let mut kvm = Kvm::new(4096);
        let all: Vec<usize> = (0..4096).collect();
        kvm.request(None, &all);
        let (copied, hot) = kvm.request(None, &all);
        assert_eq!((copied.len(), hot), (4096, MAX_HOT));
        let (copied, hot) = kvm.request(None, &[]);
        assert_eq!((copied.len(), hot), (MAX_HOT, MAX_HOT));
    }

    #[test]
    fn every_group_has_its_turn() {
        let mut turn = Turn::default();
        let mut had: Vec<_> = (0..TURNS * GROUPS).filter_map(|_| turn.next()).collect();
        had.sort_unstable();
        assert_eq!(had, (0..GROUPS).collect::<Vec<_>>());
    }

    #[test]
    fn only_words_with_something_to_clear_are_cleared() {
        let Kvm(mut slot, mut hot) = Kvm::new(64 * 20);
        (slot.named[1], slot.named[17]) = (1, 1 << 8);
        assert_eq!(slot.sort(None, &mut hot, |_, _| ()), 1..18);
        assert_eq!((slot.clear[1], slot.clear[17]), (1, 1 << 8));
        slot.clear.fill(0);
        // Written once more: hot, and left unprotected.
        assert_eq!(slot.sort(None, &mut hot, |_, _| ()), 0..0);
        assert_eq!(hot, 2);
    }
}
