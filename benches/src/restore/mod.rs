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
//! * `restore/a`: the state is loaded and the first vCPU enters its guest, from the
//!   command's arrival at the VMM and by its own clock;
//! * `restore/command`: the reply to the command is back at the agent;
//! * `restore/b`: guest-init has confirmed entropy and clock;
//! * `restore/answer`: the function's answer is back at the agent;
//! * `restore/c`: the caller of the API has it, waiting for a place included.

mod footprint;
mod plan;
mod results;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use snapback_proto::words::chain;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::calls::{self, CallError};
use crate::client::Client;
use crate::floor::{self, FloorError};
use crate::function::FunctionError;
use crate::node::{Node, NodeError};
use crate::peers::{self, Guest, Programs, Vmm};
use crate::progress;
use crate::report::Report;
use crate::series::{Sample, Series};
use crate::subjects::{self, Subject, SubjectError};
use footprint::FootprintError;
use plan::{Cache, Setting};

/// What each function is called with.
const EVENT: &str = "{}";
/// How long packing the code for the peers may take.
const PACK_LIMIT: Duration = Duration::from_secs(60);
/// How long an agent may take to make a snapshot anew: it looks at a memory, copies it and
/// writes it to disk.
const GATHER_LIMIT: Duration = Duration::from_secs(300);
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
    /// Where the functions are that had to be built.
    pub functions: PathBuf,
    /// The packed PID 1 of the peers' guest; without it there are no peers.
    pub peer_init: Option<PathBuf>,
    /// Peers that not every host has.
    pub peers: Programs,
    /// Leave out what only more samples or more concurrency would show.
    pub quick: bool,
}

/// The benchmark broke off.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A function is not there or was not created.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// The peers' function is not there.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The agent does not run.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A request failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The floor could not be measured.
    #[error(transparent)]
    Floor(#[from] FloorError),
    /// The memory of a microVM could not be measured.
    #[error(transparent)]
    Footprint(#[from] FootprintError),
    /// The peers' code image could not be made.
    #[error("the peers' code image cannot be made: {0}")]
    Pack(String),
    /// A function's snapshot was not made anew.
    #[error("the pages that requests write were not gathered within {GATHER_LIMIT:?}")]
    NotGathered,
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
    report.floor.extend(floor::page_copy()?);
    let rows = tokio::task::spawn_blocking(floor::guest).await??;
    report.floor.extend(rows);

    let bench = Bench::prepare(options).await?;
    let outcome = bench.drive(options, report).await;
    outcome?;
    if let Some(initramfs) = &options.peer_init {
        for vmm in options.peers.vmms() {
            measure_peer(options, initramfs, vmm, report).await?;
        }
    }
    Ok(())
}

/// A peer that cannot be measured leaves a failed check, and the others their turn.
async fn measure_peer(
    options: &Options,
    initramfs: &Path,
    vmm: Box<dyn Vmm>,
    report: &mut Report,
) -> Result<(), RestoreError> {
    progress::step(&format!("restore the same guest with {}", vmm.peer()));
    let scratch = tempfile::tempdir_in("/run")
        .map_err(|error| RestoreError::Pack(format!("no temporary directory ({error})")))?;
    let guest = peer_guest(options, initramfs, scratch.path()).await?;
    let rounds = if options.quick { 1 } else { PEER_ROUNDS };
    let measured = move || peers::measure(vmm.as_ref(), &guest, rounds);
    match tokio::task::spawn_blocking(measured).await? {
        Ok(peer) => report.peers.push(peer),
        Err(error) => report.check("restore/peer", false, chain(&error)),
    }
    Ok(())
}

async fn peer_guest(
    options: &Options,
    initramfs: &Path,
    scratch: &Path,
) -> Result<Guest, RestoreError> {
    let folder = subjects::python()?;
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
        let (bin_dir, built) = (&options.bin_dir, &options.functions);
        let subjects = subjects::create(bin_dir, built, node.socket()).await?;
        Ok(Self {
            options,
            subjects,
            node: Some(node).into(),
        })
    }

    async fn drive(&self, options: &Options, report: &mut Report) -> Result<(), RestoreError> {
        for subject in &self.subjects {
            // What an agent learns from a snapshot's first runs is kept: every series
            // begins with it, the first one too.
            progress::step(&format!("{}: learn from its first runs", subject.runtime));
            self.learn(subject).await?;
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
            progress::step(&format!("{}: memory of a microVM", subject.runtime));
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

    /// Lets an agent learn from the first runs of a snapshot, and of the one that it makes
    /// then.
    async fn learn(&self, subject: &Subject) -> Result<(), RestoreError> {
        let client = self.restart(&plan::FIRST.toml()).await?;
        let first = calls::snapshot_of(&client, &subject.name).await?;
        let begin = Instant::now();
        while calls::snapshot_of(&client, &subject.name).await? == first {
            if begin.elapsed() > GATHER_LIMIT {
                return Err(RestoreError::NotGathered);
            }
            self.round(&client, subject, &plan::FIRST, 1).await?;
        }
        for _ in 0..plan::WARM_UP {
            self.round(&client, subject, &plan::FIRST, 1).await?;
        }
        Ok(())
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
                series.huge_pages = footprint::huge_pages();
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
        calls::at_rest(client, setting.blanks()).await?;
        let requests: Vec<_> = (0..concurrency)
            .map(|_| {
                let (client, name) = (client.clone(), subject.name.clone());
                tokio::spawn(async move { calls::request(&client, &name, EVENT).await })
            })
            .collect();
        let mut samples = Vec::new();
        for request in requests {
            samples.push(request.await??);
        }
        Ok(samples)
    }

    /// The memory of one of two microVMs after its restore, a request and its reset.
    async fn footprint(&self, subject: &Subject, report: &mut Report) -> Result<(), RestoreError> {
        let client = self.restart(plan::UNKNOWN).await?;
        let request = || calls::request(&client, &subject.name, EVENT);
        let (first, second) = tokio::join!(request(), request());
        // They bring the snapshot's pages together: none of the two takes all faults.
        let userfaults = first?.record.userfaults + second?.record.userfaults;

        let client = self.restart(plan::FOOTPRINT).await?;
        let request = || calls::request(&client, &subject.name, EVENT);
        for _ in 0..plan::WARM_UP {
            request().await?;
            // The next one has a microVM of its own.
            sleep(Duration::from_millis(plan::IDLE_MS)).await;
        }
        tokio::try_join!(request(), request())?;
        calls::at_rest(&client, 0).await?;
        results::footprint(report, subject.runtime, footprint::measure()?, userfaults);
        Ok(())
    }
}
