//! Reset: a microVM that served a request goes back to its snapshot. Verify: it is
//! compared with it.

use std::time::Duration;

use snapback_proto::control::{Command, Reply, ResetReport};

use super::{Environment, Executor};
use crate::ids::EnvironmentId;
use crate::process::{Cause, CommandError};

/// How a reset ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetEnd {
    /// Everything was put back.
    Done(ResetReport),
    /// Nothing is wrong with the microVM, but it is not worth putting back: it wrote more
    /// pages than a reset may copy. It must be destroyed.
    OverBudget {
        /// How many.
        pages: u64,
    },
}

/// A reset failed or is in doubt. The microVM must be destroyed.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The microVM ended on the way.
    #[error("{environment}: the microVM ended: {cause}")]
    Ended {
        /// Which environment.
        environment: EnvironmentId,
        /// Why.
        cause: Cause,
    },
}

/// A microVM does not equal its snapshot, as far as is known. It must be destroyed.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The microVM ended on the way.
    #[error("{environment}: the microVM ended: {cause}")]
    Ended {
        /// Which environment.
        environment: EnvironmentId,
        /// Why.
        cause: Cause,
    },
    /// It differs.
    #[error("{environment}: the microVM differs from its snapshot: {}", differences.join("; "))]
    Different {
        /// Which environment.
        environment: EnvironmentId,
        /// What differs, in words; at most
        /// [`MAX_DIFFERENCES`](snapback_proto::control::MAX_DIFFERENCES).
        differences: Vec<String>,
    },
}

impl Executor {
    /// Puts everything back, if no more than `page_budget` pages were written.
    ///
    /// # Errors
    /// When the VMM cannot, or does not say so in time, or has ended.
    pub async fn reset(
        &self,
        environment: &mut Environment,
        page_budget: u64,
    ) -> Result<ResetEnd, ResetError> {
        let (command, limit) = (Command::Reset { page_budget }, self.timeouts.reset());
        match self.settle(environment, &command, limit).await {
            Ok(Reply::Reset(report)) => Ok(ResetEnd::Done(report)),
            Ok(Reply::OverBudget { pages }) => Ok(ResetEnd::OverBudget { pages }),
            Ok(_) => Err(environment.process.control.unexpected(&command).into()),
            Err(Unsettled::Command(error)) => Err(error.into()),
            Err(Unsettled::Ended(cause)) => Err(ResetError::Ended {
                environment: environment.id(),
                cause,
            }),
        }
    }

    /// Compares everything.
    ///
    /// # Errors
    /// When anything differs, or the VMM cannot compare, or not in time, or has ended.
    pub async fn verify(&self, environment: &mut Environment) -> Result<(), VerifyError> {
        let id = environment.id();
        let (command, limit) = (Command::Verify, self.timeouts.verify());
        match self.settle(environment, &command, limit).await {
            Ok(Reply::Verified { differences }) if differences.is_empty() => Ok(()),
            Ok(Reply::Verified { differences }) => Err(VerifyError::Different {
                environment: id,
                differences,
            }),
            Ok(_) => Err(environment.process.control.unexpected(&command).into()),
            Err(Unsettled::Command(error)) => Err(error.into()),
            Err(Unsettled::Ended(cause)) => Err(VerifyError::Ended {
                environment: id,
                cause,
            }),
        }
    }

    /// Sends a command to a microVM after its request.
    async fn settle(
        &self,
        environment: &mut Environment,
        command: &Command,
        limit: Duration,
    ) -> Result<Reply, Unsettled> {
        let control = &mut environment.process.control;
        let answer = control.command(command, &[], limit).await;
        // A guest that stopped before is not trusted to be whole, and its end explains
        // more than the command's failure.
        match environment.process.fate().known() {
            Some(cause) => Err(Unsettled::Ended(cause)),
            None => Ok(answer.map_err(Unsettled::Command)?.reply),
        }
    }
}

enum Unsettled {
    Command(CommandError),
    Ended(Cause),
}
