//! The states of an environment, and every transition between them.
//!
//! One machine covers what the agent says (`Init`, `Resume`, `Invoke`) and what
//! the runtime does (its calls, a lost connection, its end), because each limits
//! the other: no event is handed out without a confirmed resume, and no answer is
//! taken that nobody asked for.
//!
//! ```text
//!  Blank ──Init──► Initialising ──InitError, Exit──► InitFailed
//!                    │        │
//!                 Next        RestoreNext
//!                    ▼        ▼
//!    ┌───Next───► Parked    RestoreParked        a snapshot is taken in one of these
//!    │             │  │        │      │
//!    │        Resume  Hangup   Resume └──Hangup──► Idle
//!    │             │  └──► Idle│
//!    │             ▼           ▼
//!    │           Armed ◄─Next─ Resumed ◄───Resume── Idle
//!    │             │ └─Hangup─►│
//!    │        Invoke           Invoke
//!    │             ▼           ▼
//!    │          Running ◄─Next─ Pending
//!    │             │  └──StreamStart──► Streaming
//!    │          Answer                    │
//!    │             ▼    StreamEnd, StreamLost
//!    └─────────── Idle ◄──────────────────┘
//!
//!  Exit (and RestoreError in Resumed and Pending), by what has been promised:
//!    Parked, RestoreParked, Idle ──► Gone            nothing
//!    Resumed, Armed ───────────────► GoneResumed     a request will come
//!    Pending, Running, Streaming ──► Gone            the request fails
//!    Gone ──Resume──► GoneResumed ──Invoke──► Gone   the request fails at once
//! ```
//!
//! `Gather` changes no state and is allowed in Parked and RestoreParked alone. A request id
//! that does not match is refused before it becomes an event.

/// What an environment is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing was started yet.
    Blank,
    /// The runtime's process runs and has not reached its ready point.
    Initialising,
    /// The runtime could not be initialised. Final.
    InitFailed,
    /// The runtime waits in `restore/next`.
    RestoreParked,
    /// The runtime waits in `invocation/next`; nothing may be handed out.
    Parked,
    /// The runtime is between an answer and its next call.
    Idle,
    /// Resumed; the runtime runs its hooks or finishes up, and will call `next`.
    Resumed,
    /// As [`Resumed`](Self::Resumed), and an invocation waits for that call.
    Pending,
    /// Resumed; the runtime waits in `invocation/next`.
    Armed,
    /// The runtime has an invocation and owes an answer.
    Running,
    /// The runtime has begun an answer that comes in pieces, and owes its end.
    Streaming,
    /// The runtime is gone.
    Gone,
    /// As [`Gone`](Self::Gone), and resumed: the next invocation fails.
    GoneResumed,
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The agent says how to start the function.
    Init,
    /// The agent makes a restored guest one of its own.
    Resume,
    /// The agent wants an event handled.
    Invoke,
    /// The agent wants pages moved, for a snapshot that takes the place of this one.
    Gather,
    /// The runtime calls `invocation/next`.
    Next,
    /// The runtime calls `restore/next`.
    RestoreNext,
    /// The runtime posts a response or an error for the current request.
    Answer,
    /// The runtime begins to post a response in pieces.
    StreamStart,
    /// That response is complete.
    StreamEnd,
    /// The connection broke before that response was complete.
    StreamLost,
    /// The runtime posts to `init/error`.
    InitError,
    /// The runtime posts to `restore/error`.
    RestoreError,
    /// The connection on which the runtime waits is gone.
    Hangup,
    /// The runtime's process has ended.
    Exit,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// Start the runtime.
    Start,
    /// Keep the call waiting, and tell the agent that the function is ready.
    ParkReady,
    /// Keep the call waiting.
    Park,
    /// Move pages next to each other, and say which.
    Gather,
    /// Renew the guest's uniqueness and confirm it.
    Confirm,
    /// As `Confirm`, then let the waiting `restore/next` return.
    ConfirmAndRelease,
    /// Keep the invocation until the runtime asks for it.
    Hold,
    /// Hand the invocation to the runtime's call.
    Deliver,
    /// Pass the runtime's answer on.
    Answer,
    /// Tell the agent that an answer begins.
    BeginStream,
    /// Tell the agent that the answer is complete.
    EndStream,
    /// Tell the agent that the answer will never be complete.
    CutStream,
    /// Tell the agent that the initialisation failed.
    FailInit,
    /// Tell the agent that the request failed.
    FailRequest,
}

impl State {
    /// The transition table: where `event` leads and what it asks for. `None`
    /// means that the event is not allowed: a call is refused with 403, a message
    /// of the agent ends the guest.
    #[must_use]
    pub fn on(self, event: Event) -> Option<(Self, Effect)> {
        use Effect as Do;
        use Event as E;
        use State as S;

        let transition = match (self, event) {
            (S::Blank, E::Init) => (S::Initialising, Do::Start),

            (S::Initialising, E::Next) => (S::Parked, Do::ParkReady),
            (S::Initialising, E::RestoreNext) => (S::RestoreParked, Do::ParkReady),
            (S::Initialising, E::InitError | E::Exit) => (S::InitFailed, Do::FailInit),

            (S::InitFailed, E::Exit) => (S::InitFailed, Do::Nothing),

            (S::RestoreParked, E::Gather) => (S::RestoreParked, Do::Gather),
            (S::RestoreParked, E::Resume) => (S::Resumed, Do::ConfirmAndRelease),
            (S::RestoreParked, E::Hangup) => (S::Idle, Do::Nothing),
            (S::RestoreParked, E::Exit) => (S::Gone, Do::Nothing),

            (S::Parked, E::Gather) => (S::Parked, Do::Gather),
            (S::Parked, E::Resume) => (S::Armed, Do::Confirm),
            (S::Parked, E::Hangup) => (S::Idle, Do::Nothing),
            (S::Parked, E::Exit) => (S::Gone, Do::Nothing),

            (S::Idle, E::Next) => (S::Parked, Do::Park),
            (S::Idle, E::Resume) => (S::Resumed, Do::Confirm),
            (S::Idle, E::Exit) => (S::Gone, Do::Nothing),

            (S::Resumed, E::Invoke) => (S::Pending, Do::Hold),
            (S::Resumed, E::Next) => (S::Armed, Do::Park),
            (S::Resumed, E::RestoreError | E::Exit) => (S::GoneResumed, Do::Nothing),

            (S::Pending, E::Next) => (S::Running, Do::Deliver),
            (S::Pending, E::RestoreError | E::Exit) => (S::Gone, Do::FailRequest),

            (S::Armed, E::Invoke) => (S::Running, Do::Deliver),
            (S::Armed, E::Hangup) => (S::Resumed, Do::Nothing),
            (S::Armed, E::Exit) => (S::GoneResumed, Do::Nothing),

            // A runtime that asks again gets the same invocation again, as on Lambda.
            (S::Running, E::Next) => (S::Running, Do::Deliver),
            (S::Running, E::Answer) => (S::Idle, Do::Answer),
            (S::Running, E::StreamStart) => (S::Streaming, Do::BeginStream),
            (S::Running, E::Exit) => (S::Gone, Do::FailRequest),

            (S::Streaming, E::StreamEnd) => (S::Idle, Do::EndStream),
            (S::Streaming, E::StreamLost) => (S::Idle, Do::CutStream),
            (S::Streaming, E::Exit) => (S::Gone, Do::CutStream),

            (S::Gone, E::Resume) => (S::GoneResumed, Do::Confirm),
            (S::Gone, E::Exit) => (S::Gone, Do::Nothing),

            (S::GoneResumed, E::Invoke) => (S::Gone, Do::FailRequest),
            (S::GoneResumed, E::Exit) => (S::GoneResumed, Do::Nothing),

            _ => return None,
        };
        Some(transition)
    }

    /// Whether a snapshot may be taken: the runtime waits and nothing was handed
    /// out. Nothing is written to the channel in these states.
    #[must_use]
    pub fn is_parked(self) -> bool {
        matches!(self, Self::Parked | Self::RestoreParked)
    }
}

#[cfg(test)]
mod tests {
    use super::Effect as Do;
    use super::Event as E;
    use super::State as S;
    use super::*;
    use crate::table::assert_table;

    const STATES: [State; 13] = [
        S::Blank,
        S::Initialising,
        S::InitFailed,
        S::RestoreParked,
        S::Parked,
        S::Idle,
        S::Resumed,
        S::Pending,
        S::Armed,
        S::Running,
        S::Streaming,
        S::Gone,
        S::GoneResumed,
    ];
    const EVENTS: [Event; 14] = [
        E::Init,
        E::Resume,
        E::Invoke,
        E::Next,
        E::RestoreNext,
        E::Answer,
        E::StreamStart,
        E::StreamEnd,
        E::StreamLost,
        E::InitError,
        E::RestoreError,
        E::Hangup,
        E::Exit,
        E::Gather,
    ];

    /// The whole table, one row per state, one column per event in the order of
    /// `EVENTS`; `-` is a refusal. Written out a second time on purpose.
    const TABLE: &str = "
        Blank         Initialising/Start - - - - - - - - - - - - -
        Initialising  - - - Parked/ParkReady RestoreParked/ParkReady - - - - InitFailed/FailInit - - InitFailed/FailInit -
        InitFailed    - - - - - - - - - - - - InitFailed/Nothing -
        RestoreParked - Resumed/ConfirmAndRelease - - - - - - - - - Idle/Nothing Gone/Nothing RestoreParked/Gather
        Parked        - Armed/Confirm - - - - - - - - - Idle/Nothing Gone/Nothing Parked/Gather
        Idle          - Resumed/Confirm - Parked/Park - - - - - - - - Gone/Nothing -
        Resumed       - - Pending/Hold Armed/Park - - - - - - GoneResumed/Nothing - GoneResumed/Nothing -
        Pending       - - - Running/Deliver - - - - - - Gone/FailRequest - Gone/FailRequest -
        Armed         - - Running/Deliver - - - - - - - - Resumed/Nothing GoneResumed/Nothing -
        Running       - - - Running/Deliver - Idle/Answer Streaming/BeginStream - - - - - Gone/FailRequest -
        Streaming     - - - - - - - Idle/EndStream Idle/CutStream - - - Gone/CutStream -
        Gone          - GoneResumed/Confirm - - - - - - - - - - Gone/Nothing -
        GoneResumed   - - Gone/FailRequest - - - - - - - - - GoneResumed/Nothing -
    ";

    #[test]
    fn every_event_in_every_state_does_what_the_table_says() {
        assert_table(TABLE, &STATES, &EVENTS, State::on);
    }

    /// Walks every sequence of allowed events up to a length and checks, for each,
    /// what must hold whatever the runtime and the agent do.
    #[test]
    fn no_event_is_delivered_without_a_resume_of_its_own() {
        fn walk(state: State, resumed: bool, invoked: bool, depth: u32) {
            if depth == 0 {
                return;
            }
            for event in EVENTS {
                let Some((next, effect)) = state.on(event) else {
                    continue;
                };
                let resumed = match event {
                    E::Resume => {
                        assert!(matches!(effect, Do::Confirm | Do::ConfirmAndRelease));
                        assert!(!resumed, "{state:?}: a second resume");
                        true
                    }
                    _ => resumed,
                };
                let invoked = invoked || event == E::Invoke;
                assert!(
                    event != E::Invoke || resumed,
                    "{state:?}: invoked without a resume"
                );
                match effect {
                    Do::Deliver => assert!(resumed && invoked),
                    Do::BeginStream => assert!(invoked),
                    Do::Answer | Do::FailRequest | Do::EndStream | Do::CutStream => {
                        assert!(invoked, "{state:?}: an answer to nothing");
                        walk(next, false, false, depth - 1);
                        continue;
                    }
                    _ => {}
                }
                assert!(
                    !next.is_parked() || !resumed,
                    "{next:?} is parked but resumed"
                );
                walk(next, resumed, invoked, depth - 1);
            }
        }
        walk(S::Blank, false, false, 9);
    }
}
