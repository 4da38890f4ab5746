//! Starting a node: takes its places, cleans up after an earlier life, loads what
//! is registered.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use snapback_vmm::probe::branch_barrier;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Node;
use super::error::StartError;
use super::records::Records;
use crate::admission::Admission;
use crate::config::{BetweenPrincipals, Config, Isolation, Paths};
use crate::exec::Executor;
use crate::images::{DigestCache, Images};
use crate::lease::{BlankLimits, Pool, PoolLimits, Separation};
use crate::lock::Lock;
use crate::pager::Pager;
use crate::process::{CgroupRoot, Launcher};
use crate::snapshots::Catalogue;
use crate::store::{Function, Store};
use crate::telemetry::Metrics;

/// Where packages put the VMM program.
const INSTALLED_VMM: &str = "/usr/libexec/snapback/snapback-vmm";
/// Its name when it lies beside the agent.
const VMM_NAME: &str = "snapback-vmm";

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

impl Node {
    /// Starts a node. Must run within a tokio runtime.
    ///
    /// # Errors
    /// When another agent uses the same state, or a part does not start.
    pub fn start(config: Config) -> Result<Arc<Self>, StartError> {
        let state = &config.paths.state_dir;
        let state_error = |source| StartError::StateDir {
            path: state.clone(),
            source,
        };
        fs::create_dir_all(state).map_err(state_error)?;
        let lock = Lock::take(&state.join("lock"), state)?;
        let store = Store::open(&state.join("snapback.db"))?;
        let first_generation = u64::from(store.next_epoch()?) << 32;
        let (limits, timeouts) = (config.limits, config.timeouts);
        let pack_limit = Duration::from_millis(timeouts.pack_ms);
        let images = Images::open(state.join("images"), limits.max_code_mib * MIB, pack_limit)?;
        let window = u64::from(config.pager.fill_kib) * KIB;
        let catalogue = Catalogue::open(state.join("snapshots"), window)?;

        let functions = store.functions()?;
        let codes: Vec<_> = functions.iter().flat_map(Function::images).collect();
        images.keep_only(&codes);
        let snapshots: Vec<_> = functions.iter().map(|f| f.snapshot.clone()).collect();
        catalogue.keep_only(&snapshots)?;
        let functions: HashMap<_, _> = functions
            .into_iter()
            .map(|function| (function.config.name.clone(), Arc::new(function)))
            .collect();

        let cgroups = CgroupRoot::open(&config.cgroup)?;
        let launcher = Launcher::new(vmm_program(&config.paths)?, cgroups, config.users);
        let pager = Pager::start(config.pager.threads).map_err(StartError::Pager)?;
        let command_line = config.kernel.command_line.clone();
        let executor = Executor::new(
            launcher,
            pager,
            timeouts,
            command_line,
            config.pager,
            first_generation,
        );
        let metrics = Arc::new(Metrics::default());
        let pool_limits = PoolLimits {
            max_environments: limits.max_environments,
            idle: Duration::from_millis(timeouts.idle_ms),
            reset_in_place: config.reset.in_place,
            page_budget: config.reset.page_budget,
            verify: config.reset.verify_fraction,
            separation: separation(config.isolation, &metrics),
            blanks: BlankLimits {
                ready: config.pools.blank,
                starting: config.pools.blank_starting,
                pause: config.pools.pause(),
            },
        };
        let (pool, client) = Pool::new(Arc::clone(&executor), pool_limits, Arc::clone(&metrics));
        for function in functions.values() {
            client.keep_ready(function.config.machine());
        }
        let pool_task = tokio::spawn(pool.run());
        let admission = Admission::new(
            limits.max_concurrent_requests,
            limits.max_queued_requests,
            Duration::from_millis(timeouts.queue_ms),
        );
        tracing::info!(functions = functions.len(), state = %state.display(), "the node is up");
        Ok(Arc::new(Self {
            store,
            images,
            catalogue,
            digests: DigestCache::default(),
            executor,
            pool: client,
            pool_task: Mutex::new(Some(pool_task)),
            admission,
            builds: Semaphore::new(limits.max_builds),
            functions: RwLock::new(functions),
            creating: Mutex::default(),
            records: Arc::new(Records::new(limits.request_records)),
            metrics,
            stop: CancellationToken::new(),
            _lock: lock,
            config,
        }))
    }
}

/// What is between two principals' requests in one microVM, on this host.
fn separation(isolation: Isolation, metrics: &Metrics) -> Separation {
    let barriers = branch_barrier();
    metrics.set_barrier(barriers.is_ok());
    let separation = Separation::new(isolation.between_principals, barriers.is_ok());
    match (separation, &barriers) {
        (Separation::Barrier, Err(why)) => {
            tracing::warn!(%why, "requests of different principals may share branch predictions");
        }
        (Separation::Fresh, Err(why))
            if isolation.between_principals == BetweenPrincipals::Auto =>
        {
            tracing::info!(%why, "each principal's requests have microVMs of their own");
        }
        _ => {}
    }
    separation
}

/// The configured program, the installed one, or the one beside this program.
fn vmm_program(paths: &Paths) -> Result<PathBuf, StartError> {
    if let Some(path) = &paths.vmm {
        return if path.is_file() {
            Ok(path.clone())
        } else {
            Err(StartError::NoVmm { path: path.clone() })
        };
    }
    let installed = Path::new(INSTALLED_VMM);
    if installed.is_file() {
        return Ok(installed.to_owned());
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|own| own.parent().map(|folder| folder.join(VMM_NAME)))
        .unwrap_or_else(|| installed.to_owned());
    if beside.is_file() {
        Ok(beside)
    } else {
        Err(StartError::NoVmm { path: beside })
    }
}
