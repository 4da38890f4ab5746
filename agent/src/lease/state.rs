//! The environments' state machine: the one table.
//!
//! ```text
//!           Grant                          Start
//!   Blank ────────────────────────► Leased ─────► Running ──────┐
//!     │                    Grant   ▲   │             │ Finish   │
//!     │ Retire        ┌────────────┘   │             ▼          │
//!     │            Restored ◄──────────┘         Resetting      │
//!     ▼             ▲  ▲  │     Return            │  │ Check   │
//!   Retired ◄───────┼──┼──┴───────────────────────┼──┼──────────┘ Retire
//!                   │  └──────────────────────────┘  ▼
//!                   │              Matched       Verifying
//!                   └────────────────────────────────┘
//!                                  Matched
//!
//!   Retired ◄── Retire from Resetting, too
//!   Poisoned ◄── Fail from every state that is not an end
//! ```
//!
//! A blank machine is given to a request at once: the message that brings the snapshot
//! lets it run, too. `Retired` and `Poisoned` are ends: the process is killed, and
//! nothing of it is ever used again. Only the pool's task makes steps.

use serde::Serialize;

/// Where an environment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has a process and waits for a snapshot.
    Blank,
    /// It is parked at its function's ready point, untouched.
    Restored,
    /// Somebody has it, and nothing ran yet.
    Leased,
    /// A request runs, or ran, in it.
    Running,
    /// It is put back to its snapshot.
    Resetting,
    /// It was put back, and is compared with its snapshot.
    Verifying,
    /// Nobody needs it any more.
    Retired,
    /// It is not trusted any more.
    Poisoned,
}

/// What can happen to an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// It is given to a request.
    Grant,
    /// It comes back without having run.
    Return,
    /// The request is about to reach the guest.
    Start,
    /// The request is answered.
    Finish,
    /// The reset succeeded, and is to be looked at.
    Check,
    /// It is as its snapshot says.
    Matched,
    /// It is not needed any more.
    Retire,
    /// Something failed, or is in doubt.
    Fail,
}

/// A step that the state machine does not have: a bug, and doubt enough to
/// poison the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an environment that is {from:?} cannot {step:?}")]
pub struct IllegalStep {
    /// Where it was.
    pub from: State,
    /// What should have happened.
    pub step: Step,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Blank,
        Self::Restored,
        Self::Leased,
        Self::Running,
        Self::Resetting,
        Self::Verifying,
        Self::Retired,
        Self::Poisoned,
    ];

    /// The state after a step.
    ///
    /// # Errors
    /// When there is no such step from here.
    pub const fn after(self, step: Step) -> Result<Self, IllegalStep> {
        Ok(match (self, step) {
            (Self::Leased, Step::Return) | (Self::Resetting | Self::Verifying, Step::Matched) => {
                Self::Restored
            }
            (Self::Blank | Self::Restored, Step::Grant) => Self::Leased,
            (Self::Leased, Step::Start) => Self::Running,
            (Self::Running, Step::Finish) => Self::Resetting,
            (Self::Resetting, Step::Check) => Self::Verifying,
            (Self::Blank | Self::Restored | Self::Running | Self::Resetting, Step::Retire) => {
                Self::Retired
            }
            (
                Self::Blank
                | Self::Restored
                | Self::Leased
                | Self::Running
                | Self::Resetting
                | Self::Verifying,
                Step::Fail,
            ) => Self::Poisoned,
            (from, step) => return Err(IllegalStep { from, step }),
        })
    }

    /// Whether nothing can follow.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Retired | Self::Poisoned)
    }
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 8] = [
        Self::Grant,
        Self::Return,
        Self::Start,
        Self::Finish,
        Self::Check,
        Self::Matched,
        Self::Retire,
        Self::Fail,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The drawing above, as data.
    const EDGES: [(State, Step, State); 18] = [
        (State::Blank, Step::Grant, State::Leased),
        (State::Blank, Step::Retire, State::Retired),
        (State::Blank, Step::Fail, State::Poisoned),
        (State::Restored, Step::Grant, State::Leased),
        (State::Restored, Step::Retire, State::Retired),
        (State::Restored, Step::Fail, State::Poisoned),
        (State::Leased, Step::Return, State::Restored),
        (State::Leased, Step::Start, State::Running),
        (State::Leased, Step::Fail, State::Poisoned),
        (State::Running, Step::Finish, State::Resetting),
        (State::Running, Step::Retire, State::Retired),
        (State::Running, Step::Fail, State::Poisoned),
        (State::Resetting, Step::Matched, State::Restored),
        (State::Resetting, Step::Check, State::Verifying),
        (State::Resetting, Step::Retire, State::Retired),
        (State::Resetting, Step::Fail, State::Poisoned),
        (State::Verifying, Step::Matched, State::Restored),
        (State::Verifying, Step::Fail, State::Poisoned),
    ];

    #[test]
    fn every_pair_of_state_and_step_is_as_drawn() {
        for from in State::ALL {
            for step in Step::ALL {
                let drawn = EDGES.iter().find(|(f, s, _)| (*f, *s) == (from, step));
                match (drawn, from.after(step)) {
                    (Some((_, _, to)), Ok(after)) => assert_eq!(*to, after),
                    (None, Err(error)) => assert_eq!(error, IllegalStep { from, step }),
                    (drawn, after) => panic!("{from:?} {step:?}: {drawn:?} {after:?}"),
                }
            }
        }
    }

    #[test]
    fn after_a_request_there_is_no_way_to_the_next_one_without_a_reset() {
        // From Running, Leased is only reachable through Resetting.
        let next = |from: State| {
            Step::ALL
                .into_iter()
                .filter_map(move |s| from.after(s).ok())
        };
        let mut seen = vec![State::Running];
        let mut open = seen.clone();
        while let Some(state) = open.pop() {
            for to in next(state).filter(|to| *to != State::Resetting) {
                assert_ne!(to, State::Leased);
                if !seen.contains(&to) {
                    seen.push(to);
                    open.push(to);
                }
            }
        }
    }

    #[test]
    fn the_ends_are_ends_and_doubt_is_possible_everywhere_else() {
        for state in State::ALL {
            if state.is_end() {
                assert!(Step::ALL.into_iter().all(|step| state.after(step).is_err()));
            } else {
                assert_eq!(state.after(Step::Fail), Ok(State::Poisoned));
            }
        }
    }
}
