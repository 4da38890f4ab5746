//! Why a microVM is not trusted any more: a reason from a fixed list, for counting, and
//! the story in words, for the log and the request's record.

use std::fmt;

use snapback_proto::words::chain;

use super::invoke::InvokeError;
use super::reset::{ResetError, VerifyError};
use super::restore::RestoreError;
use crate::process::{Cause, CommandError};

/// The reasons. Each microVM that is poisoned is counted under one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Poison {
    /// Its process or its machine could not be made.
    Start,
    /// The snapshot could not be loaded.
    Restore,
    /// The guest did not run, or did not confirm entropy and clock: no request reached
    /// it.
    Resume,
    /// The function ran past its timeout.
    Timeout,
    /// The guest broke the rules of the invocation channel.
    Channel,
    /// A hook of the runtime failed after the restore.
    Spoilt,
    /// What was to be finished after the answer (extensions) was not.
    Extensions,
    /// The guest powered off, rebooted, panicked, or KVM could not go on with it.
    Guest,
    /// The VMM process ended.
    Process,
    /// The VMM process broke the control protocol.
    Protocol,
    /// A page of its memory could not be had.
    Page,
    /// The reset failed.
    Reset,
    /// The reset was not done in time.
    ResetTimeout,
    /// After its reset it differed from its snapshot.
    Mismatch,
    /// It could not be compared with its snapshot, or not in time.
    Verify,
    /// The request was given up with it: the agent was told to end, or a task of it
    /// failed.
    GivenUp,
    /// A step was asked for that the state machine does not have.
    Bug,
}

impl Poison {
    /// Every reason.
    pub const ALL: [Self; 17] = [
        Self::Start,
        Self::Restore,
        Self::Resume,
        Self::Timeout,
        Self::Channel,
        Self::Spoilt,
        Self::Extensions,
        Self::Guest,
        Self::Process,
        Self::Protocol,
        Self::Page,
        Self::Reset,
        Self::ResetTimeout,
        Self::Mismatch,
        Self::Verify,
        Self::GivenUp,
        Self::Bug,
    ];

    /// The reason as a label.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Restore => "restore",
            Self::Resume => "resume",
            Self::Timeout => "timeout",
            Self::Channel => "channel",
            Self::Spoilt => "spoilt",
            Self::Extensions => "extensions",
            Self::Guest => "guest",
            Self::Process => "process",
            Self::Protocol => "protocol",
            Self::Page => "page",
            Self::Reset => "reset",
            Self::ResetTimeout => "reset_timeout",
            Self::Mismatch => "mismatch",
            Self::Verify => "verify",
            Self::GivenUp => "given_up",
            Self::Bug => "bug",
        }
    }

    /// The reason behind the end of a microVM.
    #[must_use]
    pub const fn of(cause: &Cause) -> Self {
        match cause {
            Cause::Stopped(_) => Self::Guest,
            Cause::Gone => Self::Process,
            Cause::Protocol(_) => Self::Protocol,
            Cause::Page(_) => Self::Page,
            Cause::Retired => Self::GivenUp,
        }
    }

    /// The reason behind a command that failed: `failed` when the VMM says so, `late`
    /// when it says nothing.
    const fn of_command(error: &CommandError, failed: Self, late: Self) -> Self {
        match error {
            CommandError::Timeout { .. } => late,
            CommandError::Failed { .. } => failed,
            CommandError::Ended { cause, .. } => Self::of(cause),
            CommandError::Send { .. } => Self::Process,
            CommandError::Unexpected { .. } => Self::Protocol,
            CommandError::InDoubt { .. } => Self::Bug,
        }
    }
}

/// A microVM must be destroyed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// What it is counted under.
    pub reason: Poison,
    /// In words.
    pub words: String,
}

impl Doubt {
    /// A doubt in words.
    pub fn new(reason: Poison, words: impl Into<String>) -> Self {
        let words = words.into();
        Self { reason, words }
    }
}

impl<E: Poisonous> From<&E> for Doubt {
    fn from(error: &E) -> Self {
        Self::new(error.poison(), chain(error))
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

/// An error after which the microVM that it is about is not trusted.
pub trait Poisonous: std::error::Error {
    /// What it is counted under.
    fn poison(&self) -> Poison;
}

impl Poisonous for RestoreError {
    fn poison(&self) -> Poison {
        match self {
            Self::Name(_) | Self::Spawn(_) => Poison::Start,
            Self::Command(error) if error.command() == "prepare" => {
                Poison::of_command(error, Poison::Start, Poison::Start)
            }
            Self::Command(error) => Poison::of_command(error, Poison::Restore, Poison::Restore),
            Self::Descriptors { .. } => Poison::Protocol,
            Self::Pager { .. } | Self::Console { .. } => Poison::Restore,
        }
    }
}

impl Poisonous for InvokeError {
    fn poison(&self) -> Poison {
        match self {
            Self::Command(error) => Poison::of_command(error, Poison::Resume, Poison::Resume),
            Self::Restore(error) => error.poison(),
            Self::Ended { cause, .. } => Poison::of(cause),
            Self::Entropy { .. } | Self::Unconfirmed { .. } | Self::Timeout { .. } => {
                Poison::Resume
            }
        }
    }
}

impl Poisonous for ResetError {
    fn poison(&self) -> Poison {
        match self {
            Self::Command(error) => Poison::of_command(error, Poison::Reset, Poison::ResetTimeout),
            Self::Ended { cause, .. } => Poison::of(cause),
        }
    }
}

impl Poisonous for VerifyError {
    fn poison(&self) -> Poison {
        match self {
            Self::Command(error) => Poison::of_command(error, Poison::Verify, Poison::Verify),
            Self::Ended { cause, .. } => Poison::of(cause),
            Self::Different { .. } => Poison::Mismatch,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::time::Duration;

    use snapback_proto::control::{ControlError, Failure, StopReason};

    use super::*;
    use crate::ids::EnvironmentId;

    const COMMAND: &str = "reset";

    fn environment() -> EnvironmentId {
        EnvironmentId::from_number(1)
    }

    #[test]
    fn no_reason_is_there_twice() {
        let words = HashSet::from(Poison::ALL.map(Poison::word));
        assert_eq!(words.len(), Poison::ALL.len());
    }

    #[test]
    fn an_end_is_told_from_a_failure_and_a_failure_from_a_delay() {
        let environment = environment();
        let failure = Failure {
            operation: String::new(),
            reason: String::new(),
            section: None,
        };
        let cases = [
            (
                CommandError::Timeout {
                    environment,
                    command: COMMAND,
                    limit: Duration::ZERO,
                },
                Poison::ResetTimeout,
            ),
            (
                CommandError::Failed {
                    environment,
                    command: COMMAND,
                    failure,
                },
                Poison::Reset,
            ),
            (
                CommandError::Ended {
                    environment,
                    command: COMMAND,
                    cause: Cause::Stopped(StopReason::Panicked),
                },
                Poison::Guest,
            ),
            (
                CommandError::Send {
                    environment,
                    command: COMMAND,
                    source: ControlError::Closed,
                },
                Poison::Process,
            ),
            (
                CommandError::Unexpected {
                    environment,
                    command: COMMAND,
                },
                Poison::Protocol,
            ),
        ];
        for (error, expected) in cases {
            let words = error.to_string();
            assert_eq!(ResetError::from(error).poison(), expected, "{words}");
        }
    }

    #[test]
    fn every_cause_of_an_end_has_its_reason() {
        let broken = Arc::new(std::io::Error::other("broken"));
        for (cause, expected) in [
            (Cause::Stopped(StopReason::PoweredOff), Poison::Guest),
            (Cause::Gone, Poison::Process),
            (
                Cause::Protocol(Arc::new(ControlError::Closed)),
                Poison::Protocol,
            ),
            (Cause::Page(broken), Poison::Page),
        ] {
            let error = VerifyError::Ended {
                environment: environment(),
                cause,
            };
            assert_eq!(error.poison(), expected, "{error}");
        }
    }
}
