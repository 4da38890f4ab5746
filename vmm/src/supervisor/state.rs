//! The states of a machine and every allowed transition between them.

/// What a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The process runs; there is no VM yet.
    Started,
    /// VM, vCPUs, interrupt controllers and memory slots exist.
    Blank,
    /// A guest that was booted, or goes on from a snapshot in memory of its own, runs.
    Booted,
    /// Such a guest is stopped and its state is written.
    Snapshotted,
    /// A guest stands at its snapshot.
    Restored,
    /// A restored guest runs.
    Running,
    /// A command failed, or the guest stopped for good.
    Ended,
}

/// What moves a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the commands are documented in the control protocol"
)]
pub enum Step {
    Prepare,
    Boot,
    Snapshot,
    Restore,
    Run,
    Reset,
    Verify,
    Continue,
    /// A command failed or the guest stopped by itself.
    End,
}

impl State {
    /// Where `step` leads from here, if it is allowed.
    #[must_use]
    pub fn after(self, step: Step) -> Option<State> {
        match (self, step) {
            (State::Started, Step::Prepare) => Some(State::Blank),
            (State::Blank, Step::Boot | Step::Continue) => Some(State::Booted),
            (State::Booted, Step::Snapshot) => Some(State::Snapshotted),
            (State::Blank, Step::Restore) | (State::Running, Step::Reset) => Some(State::Restored),
            (State::Restored, Step::Run) => Some(State::Running),
            (State::Restored, Step::Verify) => Some(State::Restored),
            (_, Step::End) => Some(State::Ended),
            _ => None,
        }
    }

    /// Whether vCPUs are in the guest.
    #[must_use]
    pub fn runs(self) -> bool {
        matches!(self, State::Booted | State::Running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 7] = [
        State::Started,
        State::Blank,
        State::Booted,
        State::Snapshotted,
        State::Restored,
        State::Running,
        State::Ended,
    ];
    const STEPS: [Step; 9] = [
        Step::Prepare,
        Step::Boot,
        Step::Snapshot,
        Step::Restore,
        Step::Run,
        Step::Reset,
        Step::Verify,
        Step::Continue,
        Step::End,
    ];

    #[test]
    fn only_the_drawn_transitions_are_allowed() {
        let drawn = [
            (State::Started, Step::Prepare, State::Blank),
            (State::Blank, Step::Boot, State::Booted),
            (State::Blank, Step::Continue, State::Booted),
            (State::Booted, Step::Snapshot, State::Snapshotted),
            (State::Blank, Step::Restore, State::Restored),
            (State::Restored, Step::Run, State::Running),
            (State::Restored, Step::Verify, State::Restored),
            (State::Running, Step::Reset, State::Restored),
        ];
        for state in STATES {
            for step in STEPS {
                let expected = if step == Step::End {
                    Some(State::Ended)
                } else {
                    drawn
                        .iter()
                        .find(|d| (d.0, d.1) == (state, step))
                        .map(|d| d.2)
                };
                assert_eq!(state.after(step), expected, "{state:?} after {step:?}");
            }
        }
    }

    #[test]
    fn nothing_leads_out_of_the_end() {
        for step in STEPS {
            assert!(matches!(
                State::Ended.after(step),
                None | Some(State::Ended)
            ));
        }
    }
}
