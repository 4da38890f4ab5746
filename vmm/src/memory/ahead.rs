//! Pages that a guest will write are made its machine's own before it comes to them: one
//! copy in a batch instead of two faults each.
//!
//! The supervisor does it while the guest runs, on a processor of its own. Where there is
//! only one, it would come too late, so the guest is entered afterwards. Nothing depends
//! on it: a page that is there already, by a fault, is left alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapback_proto::control::PageRun;

use super::GuestMemory;
use crate::sys::uffd::Uffd;

/// What is left to be made the machine's own.
#[derive(Debug)]
pub struct Ahead {
    memory: Arc<GuestMemory>,
    uffd: Arc<Uffd>,
    /// In the order in which they are of use.
    runs: Mutex<VecDeque<PageRun>>,
}

impl Ahead {
    /// For `runs` of `memory`, all of whose pages are in its file.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, uffd: Arc<Uffd>, runs: Vec<PageRun>) -> Self {
        Self {
            memory,
            uffd,
            runs: Mutex::new(runs.into()),
        }
    }

    /// Whether something is left.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.runs().is_empty()
    }

    /// Copies the next pages, at most `most`.
    pub fn advance(&self, most: u32) {
        let mut runs = self.runs();
        let next = take(&mut runs, most);
        if !next.is_empty() && self.memory.own_ahead(&self.uffd, &next).is_err() {
            // The guest takes its faults instead.
            runs.clear();
        }
    }

    /// Nothing is to be copied any more.
    pub fn give_up(&self) {
        self.runs().clear();
    }

    fn runs(&self) -> MutexGuard<'_, VecDeque<PageRun>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes at most `most` pages off the front.
fn take(runs: &mut VecDeque<PageRun>, most: u32) -> Vec<PageRun> {
    let (mut taken, mut left) = (Vec::new(), most);
    while left > 0 {
        let Some(run) = runs.front_mut() else { break };
        let pages = run.pages.min(left);
        taken.push(PageRun {
            first: run.first,
            pages,
        });
        left -= pages;
        if pages == run.pages {
            runs.pop_front();
        } else {
            run.first = run.first.saturating_add(pages);
            run.pages -= pages;
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(all: &[(u32, u32)]) -> Vec<PageRun> {
        let run = |&(first, pages)| PageRun { first, pages };
        all.iter().map(run).collect()
    }

    #[test]
    fn pages_are_taken_in_order_and_none_is_lost() {
        let mut left = VecDeque::from(runs(&[(9, 2), (100, 5), (3, 1), (u32::MAX, 9)]));
        assert_eq!(take(&mut left, 4), runs(&[(9, 2), (100, 2)]));
        assert_eq!(take(&mut left, 4), runs(&[(102, 3), (3, 1)]));
        assert_eq!(take(&mut left, 4), runs(&[(u32::MAX, 4)]));
        assert_eq!(take(&mut left, 40), runs(&[(u32::MAX, 5)]));
        assert_eq!(take(&mut left, 40), []);
    }
}
