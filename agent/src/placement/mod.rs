//! Which environment serves a request: a pure function from what there is to what
//! to do.
//!
//! ```text
//!  one of the function's is idle           ─► reuse one of the principal's, the one used last
//!  enough of the function's are on the way ─► wait for one
//!  a blank machine of its shape waits      ─► restore in that one
//!  there is room                           ─► restore in a new one
//!  a blank machine of another shape waits  ─► retire it, restore in a new one
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
    /// What it has to do with the wanted snapshot.
    pub relation: Relation,
    /// Since when it has been in this state.
    pub since: Instant,
}

/// What an environment has to do with the wanted snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// It is of this snapshot.
    Wanted {
        /// Whether nobody but the request's principal was served in it last.
        same: bool,
    },
    /// It is of another one, or this request may not have it.
    Other,
    /// It is of none yet.
    Spare {
        /// Whether it has the snapshot's shape.
        fits: bool,
        /// Whether it waits; otherwise it is being started.
        ready: bool,
    },
}

/// What there is, summed up for one snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inventory {
    /// All environments.
    pub total: usize,
    /// Of the wanted snapshot: idle, one of the same principal if there is one, of these
    /// the one used last.
    pub idle: Option<EnvironmentId>,
    /// Of the wanted snapshot: about to become idle.
    pub coming: usize,
    /// Of other snapshots: idle, the one used longest ago.
    pub evictable: Option<EnvironmentId>,
    /// Of other snapshots: about to become idle. Whatever is being verified, too: that
    /// takes long, and nobody waits for it who can have something else.
    pub coming_elsewhere: usize,
    /// Of no snapshot, of the right shape: waiting, else being started.
    pub spare: Option<EnvironmentId>,
    /// Of no snapshot, of another shape: waiting.
    pub spare_elsewhere: Option<EnvironmentId>,
}

/// What to do for the request that waits longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Give it this one.
    Reuse(EnvironmentId),
    /// Restore in this one.
    Take(EnvironmentId),
    /// Restore in a new one.
    Restore,
    /// Retire this one and restore in a new one in its place.
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
        let (mut best, mut oldest): (Option<(bool, Instant)>, Option<Instant>) = (None, None);
        let mut starting = None;
        for candidate in candidates {
            let id = candidate.id;
            inventory.total += 1;
            match (candidate.state, candidate.relation) {
                (State::Restored, Relation::Wanted { same })
                    if best.is_none_or(|best| (same, candidate.since) > best) =>
                {
                    best = Some((same, candidate.since));
                    inventory.idle = Some(id);
                }
                (State::Restored, Relation::Other)
                    if oldest.is_none_or(|o| candidate.since < o) =>
                {
                    oldest = Some(candidate.since);
                    inventory.evictable = Some(id);
                }
                (State::Blank, Relation::Spare { fits, ready }) => match (fits, ready) {
                    (true, true) => inventory.spare = Some(id),
                    (true, false) => starting = Some(id),
                    (false, true) => inventory.spare_elsewhere = Some(id),
                    (false, false) => inventory.coming_elsewhere += 1,
                },
                (State::Blank | State::Resetting, Relation::Wanted { .. }) => inventory.coming += 1,
                (State::Blank | State::Resetting | State::Verifying, _) => {
                    inventory.coming_elsewhere += 1;
                }
                _ => {}
            }
        }
        inventory.spare = inventory.spare.or(starting);
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
    if let Some(id) = inventory.spare {
        return Choice::Take(id);
    }
    if inventory.total < max_environments {
        return Choice::Restore;
    }
    if let Some(id) = inventory.spare_elsewhere {
        return Choice::Replace(id);
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
    const MINE: Relation = Relation::Wanted { same: true };

    fn all(specs: &[(State, Relation)]) -> Vec<Candidate> {
        let start = Instant::now();
        let candidate = |(number, &(state, relation)): (u64, &(State, Relation))| Candidate {
            id: EnvironmentId::from_number(number),
            state,
            relation,
            since: start + Duration::from_secs(number),
        };
        (0..).zip(specs).map(candidate).collect()
    }

    fn decide(specs: &[(State, Relation)], waiting: usize) -> Choice {
        choose(&Inventory::of(all(specs)), waiting, MAX)
    }

    #[test]
    fn each_rule_in_turn() {
        use State::{Blank, Leased, Resetting, Restored, Running};
        let id = EnvironmentId::from_number;
        let (mine, other) = (MINE, Relation::Other);
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

    #[test]
    fn one_of_the_same_principal_goes_before_one_used_later() {
        use State::{Resetting, Restored};
        let id = EnvironmentId::from_number;
        let others = Relation::Wanted { same: false };
        let idle = [(Restored, MINE), (Restored, MINE), (Restored, others)];
        assert_eq!(decide(&idle, 1), Choice::Reuse(id(1)));
        let only = [(Restored, others), (Resetting, MINE)];
        assert_eq!(decide(&only, 1), Choice::Reuse(id(0)));
    }

    #[test]
    fn nobody_waits_for_a_comparison_who_can_have_something_else() {
        use State::{Restored, Running, Verifying};
        let id = EnvironmentId::from_number;
        let other = Relation::Other;
        assert_eq!(decide(&[(Verifying, MINE)], 1), Choice::Restore);
        let idle = [
            (Verifying, MINE),
            (Restored, other),
            (Running, other),
            (Running, MINE),
        ];
        assert_eq!(decide(&idle, 1), Choice::Replace(id(1)));
        let busy = [
            (Verifying, MINE),
            (Running, other),
            (Running, MINE),
            (Running, MINE),
        ];
        assert_eq!(decide(&busy, 1), Choice::Wait);
    }

    #[test]
    fn a_blank_machine_that_waits_is_taken_and_one_of_another_shape_makes_room() {
        use State::{Blank, Restored, Running};
        let id = EnvironmentId::from_number;
        let spare = |fits, ready| (Blank, Relation::Spare { fits, ready });
        assert_eq!(
            decide(&[spare(true, false), spare(true, true)], 1),
            Choice::Take(id(1))
        );
        assert_eq!(decide(&[spare(true, false)], 1), Choice::Take(id(0)));
        assert_eq!(decide(&[spare(false, true)], 1), Choice::Restore);
        // What was restored costs more than what was not.
        let running = (Running, MINE);
        let idle = (Restored, Relation::Other);
        let full = [running, idle, spare(false, true), running];
        assert_eq!(decide(&full, 1), Choice::Replace(id(2)));
        let full = [running, running, spare(false, false), running];
        assert_eq!(decide(&full, 1), Choice::Wait);
    }

    proptest! {
        #[test]
        fn the_limit_holds_and_nothing_busy_is_touched(
            specs in prop::collection::vec((0..State::ALL.len(), 0..7_usize), 0..8),
            waiting in 1..4_usize,
        ) {
            let specs: Vec<_> = specs
                .into_iter()
                .map(|(state, relation)| match relation {
                    0 | 6 => (State::ALL[state], Relation::Wanted { same: relation == 0 }),
                    1 => (State::ALL[state], Relation::Other),
                    n => (State::Blank, Relation::Spare { fits: n & 1 == 0, ready: n < 4 }),
                })
                .collect();
            let candidates = all(&specs);
            let state = |id| candidates.iter().find(|c| c.id == id).map(|c| (c.state, c.relation));
            match decide(&specs, waiting) {
                Choice::Reuse(id) => {
                    let wanted = matches!(state(id), Some((State::Restored, Relation::Wanted { .. })));
                    prop_assert!(wanted);
                }
                Choice::Take(id) => {
                    let fits = matches!(
                        state(id),
                        Some((State::Blank, Relation::Spare { fits: true, .. }))
                    );
                    prop_assert!(fits);
                }
                Choice::Replace(id) => {
                    let unneeded = matches!(
                        state(id),
                        Some(
                            (State::Restored, Relation::Other)
                                | (State::Blank, Relation::Spare { fits: false, ready: true })
                        )
                    );
                    prop_assert!(unneeded);
                }
                Choice::Restore => prop_assert!(specs.len() < MAX),
                Choice::Wait | Choice::Refuse => {}
            }
        }
    }
}
