//! What the pool needs of microVMs. `exec` does it for real; tests do it without
//! one.

use std::sync::Arc;

use snapback_vmm::snapshot::manifest::{Machine, SnapshotId};

use crate::exec::{
    Blank, Environment, Executor, Poisonous, ResetEnd, ResetError, RestoreError, VerifyError,
};
use crate::ids::EnvironmentId;
use crate::process::Cause;
use crate::snapshots::Snapshot;

/// The verbs that the pool's tasks use.
pub trait Machines: Send + Sync + 'static {
    /// What is restored.
    type Image: Send + Sync + 'static;
    /// What a blank microVM must have in common with an image.
    type Shape: Copy + PartialEq + Send + 'static;
    /// A microVM without a snapshot.
    type Blank: Send + 'static;
    /// A microVM with one.
    type Machine: Send + 'static;
    /// A microVM did not start.
    type RestoreError: Poisonous + Send + Sync + 'static;
    /// A reset failed.
    type ResetError: Poisonous + Send + Sync + 'static;
    /// A comparison failed, or found something.
    type VerifyError: Poisonous + Send + Sync + 'static;

    /// The image's name.
    fn name(image: &Self::Image) -> &SnapshotId;

    /// The image's shape.
    fn shape(image: &Self::Image) -> Self::Shape;

    /// Starts a microVM.
    fn blank(
        &self,
        id: EnvironmentId,
        shape: Self::Shape,
    ) -> impl Future<Output = Result<Self::Blank, Self::RestoreError>> + Send;

    /// Gives a microVM its image; its first request loads it.
    fn adopt(&self, blank: Self::Blank, image: Arc<Self::Image>) -> Self::Machine;

    /// Puts everything back, if no more than `page_budget` pages were written.
    fn reset(
        &self,
        machine: &mut Self::Machine,
        page_budget: u64,
    ) -> impl Future<Output = Result<ResetEnd, Self::ResetError>> + Send;

    /// Compares everything with the image.
    fn verify(
        &self,
        machine: &mut Self::Machine,
    ) -> impl Future<Output = Result<(), Self::VerifyError>> + Send;

    /// Waits for the microVM's end, whatever is restored in it meanwhile.
    fn ended(blank: &Self::Blank) -> impl Future<Output = Cause> + Send + 'static;

    /// Ends a microVM.
    fn end(&self, machine: Self::Machine) -> impl Future<Output = ()> + Send;

    /// Ends a microVM that nothing was restored in.
    fn end_blank(&self, blank: Self::Blank) -> impl Future<Output = ()> + Send;
}

impl Machines for Executor {
    type Image = Snapshot;
    type Shape = Machine;
    type Blank = Blank;
    type Machine = Environment;
    type RestoreError = RestoreError;
    type ResetError = ResetError;
    type VerifyError = VerifyError;

    fn name(image: &Snapshot) -> &SnapshotId {
        image.id()
    }

    fn shape(image: &Snapshot) -> Machine {
        image.machine()
    }

    async fn blank(&self, id: EnvironmentId, shape: Machine) -> Result<Blank, RestoreError> {
        self.blank_named(id, shape).await
    }

    fn adopt(&self, blank: Blank, image: Arc<Snapshot>) -> Environment {
        Environment::new(blank, image)
    }

    async fn reset(
        &self,
        machine: &mut Environment,
        page_budget: u64,
    ) -> Result<ResetEnd, ResetError> {
        Self::reset(self, machine, page_budget).await
    }

    async fn verify(&self, machine: &mut Environment) -> Result<(), VerifyError> {
        Self::verify(self, machine).await
    }

    fn ended(blank: &Blank) -> impl Future<Output = Cause> + Send + 'static {
        blank.ended()
    }

    async fn end(&self, machine: Environment) {
        machine.end().await;
    }

    async fn end_blank(&self, blank: Blank) {
        blank.end().await;
    }
}
