//! The one place of a huge page that a snapshot's microVMs get as a whole, where runs write
//! so many pages of it that one copy of all of them costs less.
//!
//! A page that is written costs a copy ahead and a fault that maps it, one that is only read
//! the fault. The whole place costs its 2 MiB' copy, about 160 µs, and one fault; but all of
//! it is the microVM's own memory then.

use std::collections::BTreeSet;

use snapback_proto::control::PageRun;

use super::cache::PAGES_PER_HUGE;

/// What a written page costs: 5.1 µs for its copy (decision 0025) and 4.7 for the fault that
/// maps it.
const WRITTEN_US: usize = 10;
/// What one costs that is read beside them: the fault.
const READ_US: usize = 5;
/// Fewest written pages: those save twice what the place costs.
const WORTH_IT: usize = 32;
/// Most pages that a microVM may have of its own before it has done anything, 3.25 MiB: with
/// the process's own memory, it is within the 4 MiB that a restored one may take up.
const MOST_OWN: usize = 832;

/// Pages of a huge page.
const PAGES: u32 = 512;
const _: () = assert!(PAGES as u64 == PAGES_PER_HUGE);

/// The place for runs that write `written` and read `read` besides, each by number, of a
/// memory with so many whole places.
pub(super) fn choose(written: &BTreeSet<u64>, read: &BTreeSet<u64>, places: u64) -> Option<u32> {
    let all: BTreeSet<u64> = written.iter().map(|page| page / PAGES_PER_HUGE).collect();
    let mut best = None;
    for place in all.range(..places) {
        let first = place * PAGES_PER_HUGE;
        let pages = first..first + PAGES_PER_HUGE;
        let writes = written.range(pages.clone()).count();
        let own = written.len() - writes + PAGES as usize;
        if writes < WORTH_IT || own > MOST_OWN {
            continue;
        }
        let saved = writes * WRITTEN_US + read.range(pages).count() * READ_US;
        if best.is_none_or(|(most, _)| saved > most) {
            best = Some((saved, *place));
        }
    }
    best.and_then(|(_, place)| u32::try_from(place).ok())
}

/// What of these runs lies outside of a place, in their order.
pub(super) fn outside(runs: &[PageRun], place: u32) -> Vec<PageRun> {
    let begin = place.saturating_mul(PAGES);
    let end = begin.saturating_add(PAGES);
    let parts = runs.iter().flat_map(|run| {
        let after = run.first.saturating_add(run.pages);
        [run.first..after.min(begin), run.first.max(end)..after]
    });
    let parts = parts.filter(|part| !part.is_empty());
    parts
        .map(|part| PageRun {
            first: part.start,
            pages: part.end - part.start,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many pages of each place, by its number.
    fn pages(all: &[(u64, u64)]) -> BTreeSet<u64> {
        let of = |&(place, count)| (0..count).map(move |page| place * PAGES_PER_HUGE + page);
        all.iter().flat_map(of).collect()
    }

    #[test]
    fn the_place_that_saves_most_is_chosen_if_it_is_worth_it_and_leaves_room() {
        type Case<'a> = (&'a str, &'a [(u64, u64)], &'a [(u64, u64)], Option<u32>);
        let cases: [Case; 10] = [
            ("nothing is written", &[], &[(0, 0)], None),
            ("fewer than it takes", &[(3, 31)], &[], None),
            ("just enough", &[(3, 32)], &[], Some(3)),
            ("more is written", &[(0, 40), (2, 41)], &[], Some(2)),
            ("the first of two", &[(1, 40), (2, 40)], &[], Some(1)),
            ("more is read", &[(0, 41), (2, 40)], &[(2, 3)], Some(2)),
            ("little is read", &[(0, 41), (2, 40)], &[(2, 2)], Some(0)),
            ("320 others", &[(0, 200), (1, 200), (2, 120)], &[], Some(0)),
            ("321 others", &[(0, 200), (1, 200), (2, 121)], &[], None),
            ("not a whole place", &[(3, 33), (4, 99)], &[], Some(3)),
        ];
        for (what, written, read, expected) in cases {
            // Pages that are read are none of those that are written.
            let read = pages(read).iter().map(|page| page + 400).collect();
            assert_eq!(choose(&pages(written), &read, 4), expected, "{what}");
        }
    }

    #[test]
    fn runs_lose_what_lies_in_a_place_and_keep_their_order() {
        let runs = |all: &[(u32, u32)]| -> Vec<PageRun> {
            let run = |&(first, pages)| PageRun { first, pages };
            all.iter().map(run).collect()
        };
        let all = runs(&[(1030, 1), (500, 600), (512, 512), (510, 2), (1000, 25)]);
        let left = runs(&[(1030, 1), (500, 12), (1024, 76), (510, 2), (1024, 1)]);
        assert_eq!(outside(&all, 1), left);
        assert_eq!(outside(&all, u32::MAX), all);
    }
}
