//! Gather: when it is known what a function's requests write, its snapshot is made anew, with
//! the pages that they touch next to each other.
//!
//! ```text
//!  request ended, writes known ─► exec::gather ─► new snapshot ─► store, functions ─► old one removed
//! ```
//!
//! It goes on beside requests, once for each function. What fails leaves the function as it
//! is: with the snapshot that it has.

use std::io;
use std::sync::{Arc, PoisonError};

use snapback_proto::guest::Gather;
use snapback_vmm::snapshot::manifest::SnapshotId;

use super::Node;
use crate::exec::BuildError;
use crate::ids::new_snapshot_id;
use crate::lease::Unwanted;
use crate::snapshots::{Snapshot, SnapshotError};
use crate::store::{Function, StoreError};

/// A function keeps the snapshot that it has.
#[derive(Debug, thiserror::Error)]
enum GatherError {
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Draining,
    /// The kernel gave no random bytes for a name.
    #[error("the snapshot cannot be named")]
    Name(#[source] io::Error),
    /// The guest did not do it.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The new snapshot cannot be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The task was cut off.
    #[error("the snapshot's writing was cut off")]
    CutOff(#[from] tokio::task::JoinError),
}

impl Node {
    /// Begins it, if it is time.
    pub(super) fn gather_when_known(self: &Arc<Self>, function: &Arc<Function>) {
        let snapshot = self.catalogue.loaded(&function.snapshot);
        let snapshot = snapshot.filter(|_| self.config.pager.gathers());
        let Some(snapshot) = snapshot else { return };
        let Some(pages) = snapshot.to_gather() else {
            return;
        };
        let (node, function) = (Arc::clone(self), Arc::clone(function));
        tokio::spawn(async move {
            let name = &function.config.name;
            let gathered = tokio::select! {
                gathered = node.gather(&function, &snapshot, pages) => gathered,
                () = node.stop.cancelled() => return,
            };
            if let Err(error) = gathered {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(function = %name, error, "what requests write stays scattered");
            }
            snapshot.settle();
        });
    }

    async fn gather(
        &self,
        function: &Arc<Function>,
        snapshot: &Arc<Snapshot>,
        pages: Gather,
    ) -> Result<(), GatherError> {
        let place = self.builds.acquire().await;
        let _place = place.map_err(|_| GatherError::Draining)?;
        let id = new_snapshot_id().map_err(GatherError::Name)?;
        let mut parts = self
            .catalogue
            .parts_of(snapshot.id(), self.disks(function)?)?;
        parts.gathered = true;
        let base = self.base_for(&parts);
        let draft = self.catalogue.draft(id, base.as_ref())?;
        let state = draft.state_file()?;
        let named = pages.written.len() + pages.read.len();
        let made = self.executor.gather(snapshot, pages, &state).await?;
        let (moved, len) = (made.moved, snapshot.memory().len());
        if moved == 0 {
            return Ok(());
        }
        let new = tokio::task::spawn_blocking(move || draft.commit(made.memory, len, &parts));
        let new = new.await??;
        if self.replace(function, &new)? {
            let (name, new) = (&function.config.name, new.id());
            tracing::info!(function = %name, snapshot = %new, named, moved, "gathered");
            self.abandon(&function.snapshot, Unwanted::Replaced).await;
        } else {
            self.remove_snapshot(new.id())?;
        }
        Ok(())
    }

    /// Gives a function another snapshot; false when it has been deleted meanwhile.
    fn replace(&self, function: &Function, new: &Arc<Snapshot>) -> Result<bool, StoreError> {
        let (name, old) = (&function.config.name, &function.snapshot);
        if !self.store.replace_snapshot(name, old, new.id())? {
            return Ok(false);
        }
        self.catalogue.adopt(new);
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let current = functions.get_mut(name).filter(|f| f.snapshot == *old);
        Ok(current.is_some_and(|current| {
            *current = Arc::new(with_snapshot(function, new.id()));
            true
        }))
    }
}

fn with_snapshot(function: &Function, snapshot: &SnapshotId) -> Function {
    Function {
        snapshot: snapshot.clone(),
        ..function.clone()
    }
}
