//! The restore benchmark: how long a request waits for a microVM that does not exist.
//!
//! ```text
//!  create the functions (boot, snapshot) once
//!   └─► for each setting of the plan: agent with that configuration ─► samples
//!        └─► rows by clock · floor of a bare guest · peers · checks against the targets
//! ```
//!
//! Every request gets a microVM of its own (`reset.in_place = false`), so each sample is
//! one restore. Clocks, all from the `Restore` command or the request on:
//!
//! * `restore/a`: the state is loaded and the vCPUs are entered;
//! * `restore/b`: guest-init has confirmed entropy and clock;
//! * `restore/answer`: the function's answer is back at the agent;
//! * `restore/c`: the caller of the API has it, waiting for a place included.

mod footprint;
mod plan;
mod results;
mod samples;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hyper::Method;
use snapback_proto::words::chain;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Client, ClientError};
use crate::facts::{Readiness, Record};
use crate::floor::{self, FloorError};
use crate::function::{self, CreateError, Function, FunctionError};
use crate::node::{Node, NodeError};
use crate::peers::{self, Guest, PeerError};
use crate::progress;
use crate::report::Report;
use footprint::FootprintError;
use plan::{Cache, Setting};
use samples::{Sample, Series};

/// Where the benchmark's functions are, in the source tree.
const FUNCTIONS: [&str; 1] = ["benches/functions/noop"];
/// How long one request may take.
const INVOKE_LIMIT: Duration = Duration::from_secs(120);
/// How long the agent may take for an answer of its own.
const AGENT_LIMIT: Duration = Duration::from_secs(30);
/// How long the pool of blank microVMs may take until it is full.
const REFILL_LIMIT: Duration = Duration::from_secs(300);
const REFILL_INTERVAL: Duration = Duration::from_millis(10);
/// What a machine does right after it became idle is not part of the next sample.
const SETTLE: Duration = Duration::from_millis(50);
/// How long packing the code for the peers may take.
const PACK_LIMIT: Duration = Duration::from_secs(60);
/// Restores of each peer in each way.
const PEER_ROUNDS: usize = 5;
/// Lines of the agent's log that are shown after a failure.
const LOG_LINES: usize = 60;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel, guest-init and root file systems.
    pub assets: PathBuf,
    /// Where `snapback` and `snapback-vmm` are.
    pub bin_dir: PathBuf,
    /// The packed PID 1 of the peers' guest; without it there are no peers.
    pub peer_init: Option<PathBuf>,
    /// Leave out what only more samples or more concurrency would show.
    pub quick: bool,
}

/// The benchmark broke off.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A function is not there.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// A function was not created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The agent does not run.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The agent did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The floor could not be measured.
    #[error(transparent)]
    Floor(#[from] FloorError),
    /// The memory of a microVM could not be measured.
    #[error(transparent)]
    Footprint(#[from] FootprintError),
    /// A request failed.
    #[error("a request was answered with {status}: {body}")]
    Request {
        /// HTTP's status.
        status: u16,
        /// The begin of the body.
        body: String,
    },
    /// The blank microVMs are not there in time.
    #[error("{wanted} blank microVMs were not ready within {REFILL_LIMIT:?}")]
    NoBlanks {
        /// How many were waited for.
        wanted: usize,
    },
    /// A peer could not be measured.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The peers' code image could not be made.
    #[error("the peers' code image cannot be made: {0}")]
    Pack(String),
    /// A task of the benchmark did not come back.
    #[error("a task of the benchmark ended")]
    Task(#[from] tokio::task::JoinError),
}

/// Measures everything. Progress goes to standard error; the report has at least one
/// failed check if anything went wrong.
pub async fn run(options: &Options) -> Report {
    let mut report = Report::new("bench/restore");
    if let Err(error) = measure(options, &mut report).await {
        report.check("restore/completed", false, chain(&error));
    }
    results::check(&mut report);
    report
}

async fn measure(options: &Options, report: &mut Report) -> Result<(), RestoreError> {
    progress::step("measure the floor");
    report.floor.extend(floor::page_copy());
    let rows = tokio::task::spawn_blocking(floor::guest).await??;
    report.floor.extend(rows);

    let bench = Bench::prepare(options).await?;
    let outcome = bench.drive(options, report).await;
    outcome?;
    if let Some(initramfs) = &options.peer_init {
        progress::step("restore the same guest with QEMU's microvm");
        let scratch = tempfile::tempdir_in("/run")
            .map_err(|error| RestoreError::Pack(format!("no temporary directory ({error})")))?;
        let guest = peer_guest(options, initramfs, scratch.path()).await?;
        let rounds = if options.quick { 1 } else { PEER_ROUNDS };
        let peer = tokio::task::spawn_blocking(move || peers::qemu(&guest, rounds)).await??;
        report.peers.push(peer);
    }
    Ok(())
}

async fn peer_guest(
    options: &Options,
    initramfs: &Path,
    scratch: &Path,
) -> Result<Guest, RestoreError> {
    let [folder] = FUNCTIONS;
    let folder = function::source_tree(folder)?.join(folder);
    let code = scratch.join("code.erofs");
    let packed = Command::new("mkfs.erofs")
        .args(["-T0", "--all-root", "--quiet"])
        .args([&code, &folder])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match timeout(PACK_LIMIT, packed).await {
        Ok(Ok(output)) if output.status.success() => {}
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(RestoreError::Pack(said));
        }
        Ok(Err(error)) => return Err(RestoreError::Pack(error.to_string())),
        Err(_) => return Err(RestoreError::Pack(format!("not within {PACK_LIMIT:?}"))),
    }
    Ok(Guest {
        kernel: options.assets.join("vmlinux"),
        initramfs: initramfs.to_owned(),
        root: options.assets.join("rootfs/python.erofs"),
        code,
        memory_mib: 128,
        scratch: scratch.to_owned(),
    })
}

/// A function that was snapshotted.
struct Subject {
    /// For rows: `python`.
    runtime: &'static str,
    name: String,
}

struct Bench<'a> {
    options: &'a Options,
    subjects: Vec<Subject>,
    node: tokio::sync::Mutex<Option<Node>>,
}

impl<'a> Bench<'a> {
    /// Starts an agent and lets it snapshot every function.
    async fn prepare(options: &'a Options) -> Result<Self, RestoreError> {
        progress::step("boot each function once and snapshot it");
        let mut node = Node::start(&options.bin_dir, &options.assets, &plan::FIRST.toml())?;
        node.ready().await?;
        let mut subjects = Vec::new();
        for folder in FUNCTIONS {
            let folder = function::source_tree(folder)?.join(folder);
            let function = Function::load(&folder)?;
            function::create(&options.bin_dir, &folder, &function, node.socket()).await?;
            subjects.push(Subject {
                runtime: "python",
                name: function.name,
            });
        }
        Ok(Self {
            options,
            subjects,
            node: Some(node).into(),
        })
    }

    async fn drive(&self, options: &Options, report: &mut Report) -> Result<(), RestoreError> {
        for subject in &self.subjects {
            for setting in plan::settings(options.quick) {
                progress::step(&format!("{}: {setting}", subject.runtime));
                let series = self.series(subject, &setting).await;
                if series.is_err()
                    && let Some(node) = &*self.node.lock().await
                {
                    progress::log(&node.log_tail(LOG_LINES));
                }
                results::rows(report, subject.runtime, &setting, &series?);
            }
            progress::step(&format!("{}: memory of one microVM", subject.runtime));
            self.footprint(subject, report).await?;
        }
        if let Some(mut node) = self.node.lock().await.take() {
            node.stop().await?;
        }
        Ok(())
    }

    /// Another agent, on the same state.
    async fn restart(&self, configuration: &str) -> Result<Client, RestoreError> {
        let mut slot = self.node.lock().await;
        let (bin_dir, assets) = (&self.options.bin_dir, &self.options.assets);
        let node = match slot.take() {
            Some(node) => node.restart(bin_dir, assets, configuration).await?,
            None => {
                let mut node = Node::start(bin_dir, assets, configuration)?;
                node.ready().await?;
                node
            }
        };
        let client = node.client();
        *slot = Some(node);
        Ok(client)
    }

    async fn series(&self, subject: &Subject, setting: &Setting) -> Result<Series, RestoreError> {
        let mut series = Series::default();
        match setting.cache {
            Cache::Warm => {
                let client = self.restart(&setting.toml()).await?;
                for _ in 0..plan::WARM_UP {
                    self.round(&client, subject, setting, 1).await?;
                }
                for _ in 0..setting.rounds {
                    let concurrency = setting.concurrency;
                    let samples = self.round(&client, subject, setting, concurrency).await?;
                    series.samples.extend(samples);
                }
            }
            Cache::Cold => {
                for _ in 0..setting.rounds {
                    let client = self.restart(&setting.toml()).await?;
                    let samples = self.round(&client, subject, setting, 1).await?;
                    series.samples.extend(samples);
                }
            }
        }
        Ok(series)
    }

    /// Requests at the same time, after everything before them has come to rest.
    async fn round(
        &self,
        client: &Client,
        subject: &Subject,
        setting: &Setting,
        concurrency: usize,
    ) -> Result<Vec<Sample>, RestoreError> {
        at_rest(client, setting.blanks()).await?;
        let requests: Vec<_> = (0..concurrency)
            .map(|_| {
                let (client, path) = (client.clone(), invoke_path(subject));
                tokio::spawn(async move { request(&client, &path).await })
            })
            .collect();
        let mut samples = Vec::new();
        for request in requests {
            samples.push(request.await??);
        }
        Ok(samples)
    }

    /// The memory of one microVM after its restore and a request.
    async fn footprint(&self, subject: &Subject, report: &mut Report) -> Result<(), RestoreError> {
        let client = self.restart(plan::FOOTPRINT).await?;
        let record = request(&client, &invoke_path(subject)).await?;
        at_rest(&client, 0).await?;
        results::footprint(report, subject.runtime, footprint::measure()?, &record);
        Ok(())
    }
}

fn invoke_path(subject: &Subject) -> String {
    format!("/2015-03-31/functions/{}/invocations", subject.name)
}

/// One request, and what the agent knows of it.
async fn request(client: &Client, path: &str) -> Result<Sample, RestoreError> {
    let begin = Instant::now();
    let answer = client.send(Method::POST, path, "{}", INVOKE_LIMIT).await?;
    let latency = begin.elapsed();
    let failed = answer.header("x-amz-function-error").is_some();
    let Some(id) = answer
        .header("x-amzn-requestid")
        .filter(|_| answer.status.is_success() && !failed)
    else {
        return Err(RestoreError::Request {
            status: answer.status.as_u16(),
            body: answer.shown(),
        });
    };
    let path = format!("/v1/requests/{id}");
    let record = client.send(Method::GET, &path, "", AGENT_LIMIT).await?;
    Ok(Sample {
        latency,
        record: record.json::<Record>()?,
    })
}

/// Waits until `blanks` microVMs wait and nothing else happens.
async fn at_rest(client: &Client, blanks: usize) -> Result<(), RestoreError> {
    let begin = Instant::now();
    loop {
        let answer = client.send(Method::GET, "/readyz", "", AGENT_LIMIT).await?;
        let now = answer.json::<Readiness>()?.environments;
        let moving = now.blank_starting + now.starting + now.busy + now.resetting;
        if now.blank >= blanks && moving == 0 {
            sleep(SETTLE).await;
            return Ok(());
        }
        if begin.elapsed() > REFILL_LIMIT {
            return Err(RestoreError::NoBlanks { wanted: blanks });
        }
        sleep(REFILL_INTERVAL).await;
    }
}
