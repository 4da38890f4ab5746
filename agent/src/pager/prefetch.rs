//! Pages that are brought before anybody touches them, a piece at a time: between
//! two pieces, a thread answers faults.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::ahead::Arranging;
use super::cache::MemoryCache;
use super::completion::Completion;
use super::working_set::WorkingSet;

/// Most pages of one piece: what a fault may have to wait for.
const PIECE: u64 = 64;

enum Piece {
    /// Some pages of a memory.
    Pages(Arc<MemoryCache>, Vec<Range<u64>>),
    /// One step towards all of a memory.
    Rest(Completion),
    /// One step of arranging a memory that is whole.
    Arrange(Arranging),
}

/// What is still to be brought. Readable while there is something.
pub(super) struct Prefetches {
    /// Counts the pieces.
    ready: OwnedFd,
    pieces: Mutex<VecDeque<Piece>>,
}

impl AsFd for Prefetches {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

impl Prefetches {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
        Ok(Self {
            ready: eventfd(0, flags)?,
            pieces: Mutex::default(),
        })
    }

    pub(super) fn add(&self, cache: &Arc<MemoryCache>, set: &WorkingSet) {
        let runs = pieces(set.sorted()).into_iter();
        self.extend(runs.map(|pages| Piece::Pages(Arc::clone(cache), pages)));
    }

    /// All of a memory, after everything that waits already.
    pub(super) fn add_rest(&self, cache: &Arc<MemoryCache>) {
        self.extend([Piece::Rest(Completion::of(Arc::clone(cache)))]);
    }

    /// Arranging a memory that is whole, after everything that waits already.
    pub(super) fn add_arranging(&self, work: Arranging) {
        self.extend([Piece::Arrange(work)]);
    }

    fn extend(&self, pieces: impl IntoIterator<Item = Piece>) {
        let mut waiting = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let before = waiting.len();
        waiting.extend(pieces);
        let added = u64::try_from(waiting.len() - before).unwrap_or(0);
        drop(waiting);
        // Does not overflow: a piece has a page, and a page is in memory.
        let _ = rustix::io::write(&self.ready, &added.to_ne_bytes());
    }

    /// Brings one piece.
    pub(super) fn work(&self) {
        let mut one = [0; 8];
        if rustix::io::read(&self.ready, &mut one).is_err() {
            // Another thread has it.
            return;
        }
        let piece = self
            .pieces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        match piece {
            Some(Piece::Pages(cache, runs)) => bring(&cache, runs),
            Some(Piece::Arrange(work)) => self.arrange(work),
            Some(Piece::Rest(mut completion)) => match completion.step() {
                Ok(true) => self.extend([Piece::Rest(completion)]),
                Ok(false) => {}
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "a snapshot's memory stays incomplete");
                }
            },
            None => {}
        }
    }

    /// Takes one step; the others wait behind what came meanwhile.
    fn arrange(&self, mut work: Arranging) {
        if work.step() {
            self.extend([Piece::Arrange(work)]);
        }
    }
}

fn bring(cache: &MemoryCache, runs: Vec<Range<u64>>) {
    for pages in runs {
        if let Err(error) = cache.bring(pages.clone()) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(?pages, error, "pages could not be prefetched");
        }
    }
}

/// Cuts runs into pieces of at most [`PIECE`] pages.
fn pieces(runs: Vec<Range<u64>>) -> Vec<Vec<Range<u64>>> {
    let mut pieces = Vec::new();
    let (mut piece, mut room) = (Vec::new(), PIECE);
    for run in runs {
        let mut at = run.start;
        while at < run.end {
            let end = run.end.min(at + room);
            piece.push(at..end);
            room -= end - at;
            at = end;
            if room == 0 {
                pieces.push(std::mem::take(&mut piece));
                room = PIECE;
            }
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_into_pieces_and_no_page_is_lost() {
        let runs = vec![0..1, 5..200, 300..301, 1000..1064];
        let pieces = pieces(runs.clone());
        let all: Vec<u64> = pieces.iter().flatten().cloned().flatten().collect();
        assert_eq!(all, runs.into_iter().flatten().collect::<Vec<_>>());
        let size = |piece: &Vec<Range<u64>>| piece.iter().map(|run| run.end - run.start).sum();
        let sizes: Vec<u64> = pieces.iter().map(size).collect();
        assert_eq!(sizes, [64, 64, 64, 64, 5]);
    }
}
