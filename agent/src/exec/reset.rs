//! Reset: a microVM that served a request goes back to its snapshot.

use snapback_proto::control::{Command, Reply, ResetReport};

use super::{Environment, Executor};
use crate::ids::EnvironmentId;
use crate::process::{Cause, CommandError};

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

impl Executor {
    /// Puts everything back.
    ///
    /// # Errors
    /// When the VMM cannot, or does not say so in time, or has ended.
    pub async fn reset(&self, environment: &mut Environment) -> Result<ResetReport, ResetError> {
        let id = environment.id();
        let control = &mut environment.process.control;
        let answer = control
            .command(&Command::Reset, &[], self.timeouts.reset())
            .await;
        // A guest that stopped before the reset is not trusted to be whole, and its
        // end explains more than the command's failure.
        if let Some(cause) = environment.process.fate().known() {
            return Err(ResetError::Ended {
                environment: id,
                cause,
            });
        }
        match answer?.reply {
            Reply::Reset(report) => Ok(report),
            _ => Err(environment
                .process
                .control
                .unexpected(&Command::Reset)
                .into()),
        }
    }
}
