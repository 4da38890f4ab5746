//! What a request holds while it has an environment.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapback_proto::control::ResetReport;
use tokio::sync::oneshot;

use crate::exec::Doubt;
use crate::ids::EnvironmentId;

/// No environment could be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LeaseError<E: std::error::Error + 'static> {
    /// All are busy.
    #[error("every environment is busy")]
    Busy,
    /// The node is shutting down, or the function is being deleted.
    #[error("the environments are being shut down")]
    Closed,
    /// One was started for this request, and that failed.
    #[error("no environment could be started")]
    Restore(#[source] Arc<E>),
    /// The kernel gave no random bytes for a name.
    #[error("an environment cannot be named")]
    Name(#[source] Arc<std::io::Error>),
}

/// What became of an environment after its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResetOutcome {
    /// It is as it was.
    Reset {
        /// What was done.
        report: ResetReport,
        /// It was compared with its snapshot, and equal.
        verified: bool,
    },
    /// It was destroyed; why, in words.
    Destroyed(String),
}

/// Whether a blank microVM was waiting when an environment was needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BlankPool {
    /// One was.
    Hit,
    /// None was: a process was started, or was being started.
    Miss,
}

/// How an environment comes back.
#[derive(Debug)]
pub(super) enum Returned<M> {
    /// A request ran.
    Ran {
        /// The environment.
        machine: M,
        /// Why it cannot be reset, when it cannot.
        doubt: Option<Doubt>,
        /// Where the reset is reported.
        report: oneshot::Sender<ResetOutcome>,
    },
}

/// An environment that belongs to one request. Dropping it without
/// [`Lease::finish`] destroys the environment.
#[derive(Debug)]
pub struct Lease<M> {
    id: EnvironmentId,
    machine: M,
    fresh: Option<BlankPool>,
    barrier: bool,
    started: Option<oneshot::Sender<()>>,
    home: oneshot::Sender<Returned<M>>,
}

impl<M> Lease<M> {
    pub(super) fn new(
        id: EnvironmentId,
        machine: M,
        fresh: Option<BlankPool>,
        barrier: bool,
        started: oneshot::Sender<()>,
        home: oneshot::Sender<Returned<M>>,
    ) -> Self {
        Self {
            id,
            machine,
            fresh,
            barrier,
            started: Some(started),
            home,
        }
    }

    /// Takes the environment out of a lease that nobody wanted.
    pub(super) fn undo(self) -> M {
        self.machine
    }

    /// Whose it is.
    #[must_use]
    pub const fn id(&self) -> EnvironmentId {
        self.id
    }

    /// Whether it never served a request before.
    #[must_use]
    pub const fn is_fresh(&self) -> bool {
        self.fresh.is_some()
    }

    /// Whether a blank microVM waited for it, when it never served a request
    /// before.
    #[must_use]
    pub const fn blank_pool(&self) -> Option<BlankPool> {
        self.fresh
    }

    /// Whether the request must run behind a branch-predictor barrier.
    #[must_use]
    pub const fn needs_barrier(&self) -> bool {
        self.barrier
    }

    /// The environment, to run the request in.
    pub fn start(&mut self) -> &mut M {
        if let Some(started) = self.started.take() {
            // Without a pool nobody cares.
            let _ = started.send(());
        }
        &mut self.machine
    }

    /// Gives the environment back after its request. `doubt` says why it cannot
    /// be reset. The result tells what became of it.
    #[must_use]
    pub fn finish(self, doubt: Option<Doubt>) -> oneshot::Receiver<ResetOutcome> {
        let (report, outcome) = oneshot::channel();
        // Without a pool the environment is dropped, and that ends it.
        let _ = self.home.send(Returned::Ran {
            machine: self.machine,
            doubt,
            report,
        });
        outcome
    }
}
