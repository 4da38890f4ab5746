//! The states of one extension, and every transition between them.
//!
//! ```text
//!  Launched ──Register──► Registered ──Next──► Waiting ◄──Next── Busy
//!                           │    ▲               │ │ │             ▲
//!                        Invoke  └────Hangup─────┘ │ └───Invoke────┘
//!                           ▼                   Shutdown           │
//!                         Owed ──Next──────────────┼───────────────┘
//!                                                  ▼
//!                                               Leaving ──Next, ExitError, Exit──► Gone
//!
//!  InitError (before the first Next), ExitError and Exit, anywhere else: Gone, and
//!  the initialisation or the request fails with it.
//! ```
//!
//! An internal extension, a part of the runtime's process, begins in `Registered`
//! and has no end of its own.

/// What an extension is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its process was started; it has not registered.
    Launched,
    /// It is at work and owes nobody anything.
    Registered,
    /// It waits in `event/next`.
    Waiting,
    /// An invocation came while it was not waiting; it gets the event when it asks.
    Owed,
    /// It has an invocation's event and has not asked for the next.
    Busy,
    /// It was told to shut down.
    Leaving,
    /// It is not to be waited for any more.
    Gone,
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It calls `register`.
    Register,
    /// It calls `event/next`.
    Next,
    /// It posts to `init/error`.
    InitError,
    /// It posts to `exit/error`.
    ExitError,
    /// The connection on which it waits is gone.
    Hangup,
    /// Its process has ended.
    Exit,
    /// There is an invocation that it wants to hear of.
    Invoke,
    /// The environment ends.
    Shutdown,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// Give it its identifier.
    Admit,
    /// Keep the call waiting.
    Park,
    /// Answer its call to `event/next`.
    Deliver,
    /// The initialisation or the request fails.
    Fail,
}

impl State {
    /// The transition table. `None` means that the event is not allowed.
    #[must_use]
    pub fn on(self, event: Event) -> Option<(Self, Effect)> {
        use Effect as Do;
        use Event as E;
        use State as S;

        Some(match (self, event) {
            (S::Launched, E::Register) => (S::Registered, Do::Admit),
            (S::Launched, E::Exit) => (S::Gone, Do::Fail),

            (S::Registered, E::Next) => (S::Waiting, Do::Park),
            (S::Registered, E::Invoke) => (S::Owed, Do::Nothing),
            (S::Registered, E::Shutdown) => (S::Gone, Do::Nothing),
            (S::Registered, E::InitError | E::ExitError | E::Exit) => (S::Gone, Do::Fail),

            (S::Waiting, E::Invoke) => (S::Busy, Do::Deliver),
            (S::Waiting, E::Shutdown) => (S::Leaving, Do::Deliver),
            (S::Waiting, E::Hangup) => (S::Registered, Do::Nothing),
            (S::Waiting, E::ExitError | E::Exit) => (S::Gone, Do::Fail),

            (S::Owed, E::Next) => (S::Busy, Do::Deliver),
            (S::Owed, E::ExitError | E::Exit) => (S::Gone, Do::Fail),

            (S::Busy, E::Next) => (S::Waiting, Do::Park),
            (S::Busy, E::ExitError | E::Exit) => (S::Gone, Do::Fail),

            // Whatever it does now is its last word.
            (S::Leaving, E::Next) => (S::Gone, Do::Park),
            (S::Leaving, E::ExitError | E::Exit | E::Hangup) => (S::Gone, Do::Nothing),

            (S::Gone, E::Exit | E::Hangup) => (S::Gone, Do::Nothing),

            _ => return None,
        })
    }

    /// Whether it has nothing to do until it hears of something.
    #[must_use]
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Waiting | Self::Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::Event as E;
    use super::State as S;
    use crate::table::assert_table;

    /// The whole table, one row per state, one column per event in this order; `-`
    /// is a refusal. Written out a second time on purpose.
    const EVENTS: [E; 8] = [
        E::Register,
        E::Next,
        E::InitError,
        E::ExitError,
        E::Hangup,
        E::Exit,
        E::Invoke,
        E::Shutdown,
    ];
    const STATES: [S; 7] = [
        S::Launched,
        S::Registered,
        S::Waiting,
        S::Owed,
        S::Busy,
        S::Leaving,
        S::Gone,
    ];
    const TABLE: &str = "
        Launched   Registered/Admit - - - - Gone/Fail - -
        Registered - Waiting/Park Gone/Fail Gone/Fail - Gone/Fail Owed/Nothing Gone/Nothing
        Waiting    - - - Gone/Fail Registered/Nothing Gone/Fail Busy/Deliver Leaving/Deliver
        Owed       - Busy/Deliver - Gone/Fail - Gone/Fail - -
        Busy       - Waiting/Park - Gone/Fail - Gone/Fail - -
        Leaving    - Gone/Park - Gone/Nothing Gone/Nothing Gone/Nothing - -
        Gone       - - - - Gone/Nothing Gone/Nothing - -
    ";

    #[test]
    fn every_event_in_every_state_does_what_the_table_says() {
        assert_table(TABLE, &STATES, &EVENTS, S::on);
    }
}
