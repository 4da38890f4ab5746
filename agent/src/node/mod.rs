//! The node: puts the parts together and does what a caller asks for.
//!
//! ```text
//!  invoke: function ─ admission ─ snapshot ─ lease ─ exec::invoke ─ answer
//!                                              └─ (reset, record) after the answer
//!  create: image ─ exec::build ─ snapshot ─ store
//!  gather: (after requests) exec::gather ─ another snapshot ─ store
//! ```
//!
//! It knows nothing of HTTP.

mod create;
mod error;
mod gather;
mod invoke;
mod records;
mod start;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use snapback_proto::ids::FunctionName;
use snapback_vmm::snapshot::Digest;
use snapback_vmm::snapshot::manifest::SnapshotId;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use create::CreateInput;
pub use error::{CreateError, DeleteError, InvokeFailure, StartError};
pub use invoke::{Answer, Ask};
pub use records::{RecordStatus, Records, RequestRecord};

use crate::admission::Admission;
use crate::config::Config;
use crate::exec::Executor;
use crate::images::{DigestCache, Images};
use crate::lease::{PoolClient, PoolSummary, Unwanted};
use crate::lock::Lock;
use crate::pager::CacheStats;
use crate::snapshots::{Catalogue, SnapshotError};
use crate::store::{Function, Store};
use crate::telemetry::Metrics;

/// How long the processes of a node that shuts down have to disappear, beyond the
/// time for running requests.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A worker node.
#[derive(Debug)]
pub struct Node {
    config: Config,
    store: Store,
    images: Images,
    catalogue: Catalogue,
    digests: DigestCache,
    executor: Arc<Executor>,
    pool: PoolClient<Executor>,
    pool_task: Mutex<Option<JoinHandle<()>>>,
    admission: Admission,
    builds: Semaphore,
    functions: RwLock<HashMap<FunctionName, Arc<Function>>>,
    /// Functions that are being created, with the images they need.
    creating: Mutex<HashMap<FunctionName, Vec<Digest>>>,
    records: Arc<Records>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    /// Held as long as the node lives.
    _lock: Lock,
}

impl Node {
    /// The configuration it runs with.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The images of functions' code.
    #[must_use]
    pub const fn images(&self) -> &Images {
        &self.images
    }

    /// The figures of the latest requests.
    #[must_use]
    pub const fn records(&self) -> &Arc<Records> {
        &self.records
    }

    /// Whether requests are admitted and can be served.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.admission.is_open() && self.executor.pager_threads() > 0
    }

    /// The figures of this node, as OpenMetrics text.
    pub async fn metrics(&self) -> String {
        let environments = self.environments().await.by_state();
        self.metrics
            .encode(&environments, self.executor.pager_threads())
    }

    /// How many environments there are.
    pub async fn environments(&self) -> PoolSummary {
        self.pool.summary().await
    }

    /// All functions, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Function>> {
        let functions = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = functions.values().map(Arc::clone).collect();
        all.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        all
    }

    /// One function.
    #[must_use]
    pub fn function(&self, name: &FunctionName) -> Option<Arc<Function>> {
        let functions = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        functions.get(name).map(Arc::clone)
    }

    /// What is known of a function's memory, when its snapshot is loaded.
    #[must_use]
    pub fn cache_stats(&self, function: &Function) -> Option<CacheStats> {
        self.catalogue
            .loaded(&function.snapshot)
            .map(|snapshot| snapshot.memory().stats())
    }

    /// Removes a function: its running requests end as they would, everything else
    /// is gone at once.
    ///
    /// # Errors
    /// When there is none, or the database fails.
    pub async fn delete(&self, name: &FunctionName) -> Result<(), DeleteError> {
        if !self.store.remove_function(name)? {
            return Err(DeleteError::NotFound(name.clone()));
        }
        let removed = {
            let mut functions = self
                .functions
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            functions.remove(name)
        };
        let Some(function) = removed else {
            return Ok(());
        };
        self.abandon(&function.snapshot, Unwanted::Deleted).await;
        self.sweep_images();
        tracing::info!(function = %name, "deleted");
        Ok(())
    }

    /// Ends everything: no new requests, the running ones have
    /// `timeouts.drain_ms`, then every process is killed.
    pub async fn shut_down(&self) {
        self.admission.close();
        let drain = Duration::from_millis(self.config.timeouts.drain_ms);
        if tokio::time::timeout(drain, self.admission.drained())
            .await
            .is_err()
        {
            tracing::warn!("requests still run; they are cut off");
        }
        self.stop.cancel();
        self.pool.close().await;
        let task = self.pool_task().take();
        if let Some(mut task) = task
            && tokio::time::timeout(END_LIMIT, &mut task).await.is_err()
        {
            // Drops every environment, which kills its process.
            task.abort();
        }
        if tokio::time::timeout(END_LIMIT, self.executor.all_ended())
            .await
            .is_err()
        {
            tracing::error!("VMM processes are left over");
        }
    }

    /// Ends what runs of a snapshot that its function has no more, and removes it.
    async fn abandon(&self, snapshot: &SnapshotId, why: Unwanted) {
        self.pool.retire(snapshot.clone(), why).await;
        match self.remove_snapshot(snapshot) {
            Ok(()) => {}
            Err(SnapshotError::InUse { id, by }) => {
                // It goes with the last diff on it.
                tracing::info!(snapshot = %id, %by, "a snapshot is kept as a base");
            }
            Err(error) => {
                // The next start removes it.
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a snapshot is left over");
            }
        }
    }

    /// Removes a snapshot that no function has any more, with bases that nobody needs.
    fn remove_snapshot(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let functions = self.list();
        let used = |base: &SnapshotId| functions.iter().any(|f| f.snapshot == *base);
        self.catalogue.remove(id, used)
    }

    /// Removes images that nothing needs any more.
    fn sweep_images(&self) {
        let creating = self.creating();
        let mut used: Vec<Digest> = creating.values().flatten().copied().collect();
        for function in self.list() {
            used.extend(function.images());
        }
        self.images.keep_only(&used);
    }

    fn creating(&self) -> MutexGuard<'_, HashMap<FunctionName, Vec<Digest>>> {
        self.creating.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool_task(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.pool_task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn asset(&self, name: &str) -> PathBuf {
        self.config.paths.assets.join(name)
    }
}
