//! Pages that a guest will write are made its machine's own before it comes to them: one
//! copy in a batch instead of two faults each.
//!
//! What they hold comes from a file of these pages alone, which the agent has made of the
//! snapshot: it is mapped by one or two huge pages, where the places of the snapshot's
//! memory would take a fault each to read.
//!
//! The supervisor does it while the guest runs, on a processor of its own. Where there is
//! only one, it would come too late, so the guest is entered afterwards. Nothing depends
//! on it: a page that is there already, by a fault, is left alone.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapback_proto::control::PageRun;

use super::{GuestMemory, MemoryError};
use crate::sys::mapping::BaseView;
use crate::sys::uffd::Uffd;

/// Pages that the guest will probably write, and what they hold.
#[derive(Debug)]
pub struct Written {
    /// Which pages of the memory.
    pub runs: Vec<PageRun>,
    /// A file of these pages, one after the other.
    pub copies: OwnedFd,
}

/// What is left to be made the machine's own.
#[derive(Debug)]
pub struct Ahead {
    memory: Arc<GuestMemory>,
    uffd: Arc<Uffd>,
    source: Option<BaseView>,
    /// In the order in which they are of use.
    pieces: Mutex<VecDeque<Piece>>,
}

/// Neighbouring pages, and where in the file of copies they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Pages of the memory.
    pub run: PageRun,
    /// The first one's place in the file, in pages.
    pub place: u32,
}

impl Ahead {
    /// For pages of `memory`, whose file lacks none.
    ///
    /// # Errors
    /// When the copies cannot be mapped or are not all there.
    pub fn new(
        memory: Arc<GuestMemory>,
        uffd: Arc<Uffd>,
        written: Option<Written>,
    ) -> Result<Self, MemoryError> {
        let (source, pieces) = match written {
            None => (None, VecDeque::new()),
            Some(Written { runs, copies }) => {
                let (pieces, pages) = lay_out(&runs);
                let view = BaseView::of_pages(copies.as_fd(), pages);
                let view = view.map_err(|source| MemoryError::Kernel {
                    step: "map copies of pages",
                    source,
                })?;
                (Some(view), pieces)
            }
        };
        Ok(Self {
            memory,
            uffd,
            source,
            pieces: Mutex::new(pieces),
        })
    }

    /// Whether something is left.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.pieces().is_empty()
    }

    /// Copies the next pages, at most `most`.
    pub fn advance(&self, most: u32) {
        let mut pieces = self.pieces();
        let next = take(&mut pieces, most);
        let Some(source) = &self.source else {
            return;
        };
        if !next.is_empty() && self.memory.own_ahead(&self.uffd, source, &next).is_err() {
            // The guest takes its faults instead.
            pieces.clear();
        }
    }

    /// Nothing is to be copied any more.
    pub fn give_up(&self) {
        self.pieces().clear();
    }

    fn pieces(&self) -> MutexGuard<'_, VecDeque<Piece>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where each run is in the file of copies, and how many pages that has.
fn lay_out(runs: &[PageRun]) -> (VecDeque<Piece>, usize) {
    let mut pieces = VecDeque::with_capacity(runs.len());
    let mut place: u32 = 0;
    for run in runs {
        pieces.push_back(Piece { run: *run, place });
        place = place.saturating_add(run.pages);
    }
    (pieces, usize::try_from(place).unwrap_or(usize::MAX))
}

/// Takes at most `most` pages off the front.
fn take(pieces: &mut VecDeque<Piece>, most: u32) -> Vec<Piece> {
    let (mut taken, mut left) = (Vec::new(), most);
    while left > 0 {
        let Some(piece) = pieces.front_mut() else {
            break;
        };
        let PageRun { first, pages: all } = piece.run;
        let pages = all.min(left);
        taken.push(Piece {
            run: PageRun { first, pages },
            place: piece.place,
        });
        left -= pages;
        if pages == all {
            pieces.pop_front();
        } else {
            piece.run.first = first.saturating_add(pages);
            piece.run.pages -= pages;
            piece.place = piece.place.saturating_add(pages);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(all: &[(u32, u32, u32)]) -> Vec<Piece> {
        let piece = |&(first, pages, place)| Piece {
            run: PageRun { first, pages },
            place,
        };
        all.iter().map(piece).collect()
    }

    #[test]
    fn pages_are_taken_in_order_and_each_from_its_place() {
        let runs = [(9, 2), (100, 5), (3, 1), (u32::MAX, 9)];
        let runs = runs.map(|(first, pages)| PageRun { first, pages });
        let (mut left, pages) = lay_out(&runs);
        assert_eq!(pages, 17);
        assert_eq!(take(&mut left, 4), pieces(&[(9, 2, 0), (100, 2, 2)]));
        assert_eq!(take(&mut left, 4), pieces(&[(102, 3, 4), (3, 1, 7)]));
        assert_eq!(take(&mut left, 4), pieces(&[(u32::MAX, 4, 8)]));
        assert_eq!(take(&mut left, 40), pieces(&[(u32::MAX, 5, 12)]));
        assert_eq!(take(&mut left, 40), []);
    }
}
