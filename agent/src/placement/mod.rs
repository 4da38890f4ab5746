//! Which environment serves a request: a pure function from what there is to what
//! to do.
//!
//! ```text
//!  one of the function's is idle           ─► reuse the one used last
//!  enough of the function's are on the way ─► wait for one
//!  there is room                           ─► restore a new one
//!  another function's is idle              ─► retire the one idle longest, restore
//!  anything is about to become idle        ─► wait
//!  else                                    ─► refuse
//! ```
//!
//! A reset takes a fraction of a restore, so one that is being reset counts as on
//! the way.

use std::time::Instant;

use crate::ids::EnvironmentId;
use crate::lease::State;

/// One environment, as placement sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Its name.
    pub id: EnvironmentId,
    /// Where it is in its life.
    pub state: State,
    /// Whether it is of the wanted snapshot.
    pub wanted: bool,
    /// Since when it has been in this state.
    pub since: Instant,
}

/// What there is, summed up for one snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inventory {
    /// All environments.
    pub total: usize,
    /// Of the wanted snapshot: idle, the one used last.
    pub idle: Option<EnvironmentId>,
    /// Of the wanted snapshot: about to become idle.
    pub coming: usize,
    /// Of other snapshots: idle, the one used longest ago.
    pub evictable: Option<EnvironmentId>,
    /// Of other snapshots: about to become idle.
    pub coming_elsewhere: usize,
}

/// What to do for the request that waits longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Give it this one.
    Reuse(EnvironmentId),
    /// Restore one.
    Restore,
    /// Retire this one and restore one in its place.
    Replace(EnvironmentId),
    /// Decide again when something has changed.
    Wait,
    /// There is no room, and none in sight.
    Refuse,
}

impl Inventory {
    /// Sums up.
    #[must_use]
    pub fn of(candidates: impl IntoIterator<Item = Candidate>) -> Self {
        let mut inventory = Self::default();
        let (mut newest, mut oldest): (Option<Instant>, Option<Instant>) = (None, None);
        for candidate in candidates {
            inventory.total += 1;
            match (candidate.state, candidate.wanted) {
                (State::Restored, true) if newest.is_none_or(|n| candidate.since > n) => {
                    newest = Some(candidate.since);
                    inventory.idle = Some(candidate.id);
                }
                (State::Restored, false) if oldest.is_none_or(|o| candidate.since < o) => {
                    oldest = Some(candidate.since);
                    inventory.evictable = Some(candidate.id);
                }
                (State::Blank | State::Resetting, true) => inventory.coming += 1,
                (State::Blank | State::Resetting, false) => inventory.coming_elsewhere += 1,
                _ => {}
            }
        }
        inventory
    }
}

/// Decides for the first of `waiting` requests (itself included).
#[must_use]
pub const fn choose(inventory: &Inventory, waiting: usize, max_environments: usize) -> Choice {
    if let Some(id) = inventory.idle {
        return Choice::Reuse(id);
    }
    if inventory.coming >= waiting {
        return Choice::Wait;
    }
    if inventory.total < max_environments {
        return Choice::Restore;
    }
    if let Some(id) = inventory.evictable {
        return Choice::Replace(id);
    }
    if inventory.coming + inventory.coming_elsewhere > 0 {
        return Choice::Wait;
    }
    Choice::Refuse
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 4;

    fn all(specs: &[(State, bool)]) -> Vec<Candidate> {
        let start = Instant::now();
        let candidate = |(number, &(state, wanted)): (u64, &(State, bool))| Candidate {
            id: EnvironmentId::from_number(number),
            state,
            wanted,
            since: start + Duration::from_secs(number),
        };
        (0..).zip(specs).map(candidate).collect()
    }

    fn decide(specs: &[(State, bool)], waiting: usize) -> Choice {
        choose(&Inventory::of(all(specs)), waiting, MAX)
    }

    #[test]
    fn each_rule_in_turn() {
        use State::{Blank, Leased, Resetting, Restored, Running};
        let id = EnvironmentId::from_number;
        let (mine, other) = (true, false);
        assert_eq!(decide(&[], 1), Choice::Restore);
        // The one used last, and never another function's.
        let idle = [(Restored, mine), (Restored, mine), (Restored, other)];
        assert_eq!(decide(&idle, 1), Choice::Reuse(id(1)));
        assert_eq!(decide(&[(Resetting, mine)], 1), Choice::Wait);
        assert_eq!(decide(&[(Resetting, mine)], 2), Choice::Restore);
        assert_eq!(decide(&[(Resetting, mine), (Blank, mine)], 2), Choice::Wait);
        assert_eq!(decide(&[(Resetting, other)], 1), Choice::Restore);
        let full = [
            (Running, mine),
            (Restored, other),
            (Restored, other),
            (Leased, mine),
        ];
        assert_eq!(decide(&full, 1), Choice::Replace(id(1)));
        let busy = [
            (Running, mine),
            (Running, other),
            (Resetting, other),
            (Leased, mine),
        ];
        assert_eq!(decide(&busy, 1), Choice::Wait);
        assert_eq!(decide(&[(Running, other); MAX], 1), Choice::Refuse);
    }

    proptest! {
        #[test]
        fn the_limit_holds_and_nothing_busy_is_touched(
            specs in prop::collection::vec((0..7_usize, any::<bool>()), 0..8),
            waiting in 1..4_usize,
        ) {
            let specs: Vec<_> = specs.into_iter().map(|(s, w)| (State::ALL[s], w)).collect();
            let candidates = all(&specs);
            let state = |id| candidates.iter().find(|c| c.id == id).map(|c| (c.state, c.wanted));
            match decide(&specs, waiting) {
                Choice::Reuse(id) => prop_assert_eq!(state(id), Some((State::Restored, true))),
                Choice::Replace(id) => prop_assert_eq!(state(id), Some((State::Restored, false))),
                Choice::Restore => prop_assert!(specs.len() < MAX),
                Choice::Wait | Choice::Refuse => {}
            }
        }
    }
}
