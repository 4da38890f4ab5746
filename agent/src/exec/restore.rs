//! Restore: a blank microVM gets a snapshot, with the message that lets it run.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::pipe::{PipeFlags, pipe_with};
use snapback_proto::CONTROL_VERSION;
use snapback_proto::control::{self, Command, Devices, FaultRange, Reply, Run};
use snapback_vmm::snapshot::manifest::Machine;

use super::Executor;
use crate::config::Fill;
use crate::ids::EnvironmentId;
use crate::pager::{MemoryCache, Prepared, RegisterError, Registration};
use crate::process::{Cause, CommandError, Fate, SpawnError, VmmProcess};
use crate::snapshots::{Disks, FirstRun, Snapshot, Watcher};
use crate::telemetry::log_console;

/// A microVM could not be started or restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The kernel gave no random bytes for a name.
    #[error("an environment cannot be named")]
    Name(#[source] io::Error),
    /// The process did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The VMM did not send the one descriptor that it must.
    #[error("{environment}: the VMM sent {count} descriptors with its memory, not 1")]
    Descriptors {
        /// Which environment.
        environment: EnvironmentId,
        /// How many came.
        count: usize,
    },
    /// The pager refused the memory.
    #[error("{environment}: the memory cannot be paged")]
    Pager {
        /// Which environment.
        environment: EnvironmentId,
        /// Why.
        #[source]
        source: RegisterError,
    },
    /// The pipe for the serial console could not be made.
    #[error("{environment}: there is no pipe for the console")]
    Console {
        /// Which environment.
        environment: EnvironmentId,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RestoreError {
    /// The snapshot section that is to blame, when one is.
    #[must_use]
    pub fn section(&self) -> Option<&str> {
        match self {
            Self::Command(error) => error.section(),
            _ => None,
        }
    }
}

/// A microVM with everything that does not depend on a snapshot.
#[derive(Debug)]
pub struct Blank {
    pub(super) process: VmmProcess,
    pages: Pages,
    /// The writing end of its console.
    pub(super) console: OwnedFd,
}

/// Where the page faults of a blank microVM will come from.
#[derive(Debug)]
struct Pages {
    uffd: OwnedFd,
    ranges: Vec<FaultRange>,
}

/// A microVM of one snapshot. Dropping it kills its process.
#[derive(Debug)]
pub struct Environment {
    pub(super) process: VmmProcess,
    /// Until its first run, which brings the snapshot.
    blank: Option<(Pages, OwnedFd)>,
    /// `None` when the snapshot's memory was complete. Ends after the process was told
    /// to end.
    memory: Option<Registration>,
    snapshot: Arc<Snapshot>,
    /// When its first request is recorded.
    pub(super) first_run: Option<FirstRun>,
    /// When what its first request writes is to be learned.
    pub(super) watcher: Option<Watcher>,
    /// See [`Environment::restore_ns`].
    pub(super) restore_ns: u64,
}

impl Blank {
    /// Its name.
    #[must_use]
    pub const fn id(&self) -> EnvironmentId {
        self.process.environment()
    }

    /// Waits for the end of the microVM and says why it came, whatever is
    /// restored in it meanwhile.
    pub fn ended(&self) -> impl Future<Output = Cause> + Send + 'static {
        let fate = self.process.fate().clone();
        async move { fate.sealed().await }
    }

    /// Kills the process and waits until it is gone.
    pub async fn end(self) {
        self.process.end().await;
    }
}

impl Environment {
    /// A blank microVM that is to be one of `snapshot`.
    #[must_use]
    pub fn new(blank: Blank, snapshot: Arc<Snapshot>) -> Self {
        Self {
            process: blank.process,
            blank: Some((blank.pages, blank.console)),
            memory: None,
            snapshot,
            first_run: None,
            watcher: None,
            restore_ns: 0,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> EnvironmentId {
        self.process.environment()
    }

    /// What it was restored from.
    #[must_use]
    pub const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// From the `Restore` command to its reply, in nanoseconds; 0 before its first run.
    #[must_use]
    pub const fn restore_ns(&self) -> u64 {
        self.restore_ns
    }

    /// Page faults that the pager answered since the restore.
    #[must_use]
    pub fn userfaults(&self) -> u64 {
        self.memory.as_ref().map_or(0, Registration::faults)
    }

    /// Kills the process and waits until it is gone.
    pub async fn end(self) {
        self.process.end().await;
    }
}

impl Executor {
    /// Starts a process and prepares its microVM.
    ///
    /// # Errors
    /// When the process does not start or the VMM cannot build its machine.
    pub async fn blank(&self, shape: Machine) -> Result<Blank, RestoreError> {
        let id = EnvironmentId::random().map_err(RestoreError::Name)?;
        self.blank_named(id, shape).await
    }

    /// As [`Self::blank`], with a name that the caller chose.
    ///
    /// # Errors
    /// As [`Self::blank`].
    pub async fn blank_named(
        &self,
        environment: EnvironmentId,
        shape: Machine,
    ) -> Result<Blank, RestoreError> {
        let mut process = self.launcher.spawn(environment, shape.memory_mib)?;
        let prepare = Command::Prepare(control::Machine {
            control_version: CONTROL_VERSION,
            memory_mib: shape.memory_mib,
            vcpus: shape.vcpus,
            template: shape.template,
            disks: Disks::COUNT,
            net: false,
        });
        let mut answer = process
            .control
            .command(&prepare, &[], self.timeouts.command())
            .await?;
        let Reply::Prepared { ranges } = answer.reply else {
            return Err(process.control.unexpected(&prepare).into());
        };
        let count = answer.fds.len();
        let console = console(environment, process.fate());
        let console = console.map_err(|source| RestoreError::Console {
            environment,
            source,
        })?;
        match (answer.fds.pop(), count) {
            (Some(uffd), 1) => Ok(Blank {
                process,
                pages: Pages { uffd, ranges },
                console,
            }),
            _ => Err(RestoreError::Descriptors { environment, count }),
        }
    }

    /// Brings the snapshot into a microVM that is still blank, and lets it run, with
    /// `channel` as the host end of its invocation channel. `None` when it has it.
    ///
    /// # Errors
    /// When the snapshot cannot be loaded. The microVM must be destroyed.
    pub(super) async fn restore(
        &self,
        environment: &mut Environment,
        channel: BorrowedFd<'_>,
        run: Run,
    ) -> Result<Option<Reply>, RestoreError> {
        let Some((Pages { uffd, ranges }, console)) = environment.blank.take() else {
            return Ok(None);
        };
        let (id, process) = (environment.id(), &mut environment.process);
        let snapshot = &environment.snapshot;
        let fate = process.fate().clone();
        let failed = move |error: io::Error| fate.seal(Cause::Page(Arc::new(error)));
        let (cache, first_run) = self.memory_for(snapshot);
        let lazy = !cache.is_complete();
        if self.paging.working_sets && snapshot.learns_writes() {
            environment.watcher = watch(process, &ranges);
        }
        let ahead = snapshot
            .ahead()
            .filter(|_| self.paging.working_sets && !lazy);
        let register = || {
            self.pager
                .register(uffd, ranges, Arc::clone(&cache), failed)
        };
        let memory = lazy.then(register).transpose();
        environment.memory = memory.map_err(|source| RestoreError::Pager {
            environment: id,
            source,
        })?;
        environment.first_run = first_run;
        let disks = snapshot.disks();
        let mut fds = vec![cache.descriptor(), snapshot.state(), console.as_fd()];
        fds.extend(ahead.and_then(Prepared::copies));
        fds.extend(borrowed(disks));
        fds.push(channel);
        let command = Command::Restore {
            devices: Devices::read_only_disks(disks.len()),
            lazy,
            written: ahead.map_or_else(Vec::new, |ahead| ahead.written().to_vec()),
            whole: ahead.and_then(Prepared::whole),
            run: Some(run),
        };
        let limit = self.timeouts.command();
        let answer = process.control.command(&command, &fds, limit).await?;
        Ok(Some(answer.reply))
    }
}

impl Executor {
    /// The memory that a new microVM maps. When the snapshot's is cold and its
    /// working set known, that is on its way.
    fn memory_for(&self, snapshot: &Arc<Snapshot>) -> (Arc<MemoryCache>, Option<FirstRun>) {
        if self.paging.working_sets {
            if let Some((memory, first_run)) = snapshot.record() {
                return (memory, Some(first_run));
            }
            if let Some(set) = snapshot.to_prefetch() {
                self.pager.prefetch(snapshot.memory(), set);
            }
        }
        if self.paging.fill == Fill::Background && snapshot.to_complete() {
            self.pager.complete(snapshot.memory());
        }
        // One that another snapshot is about to replace is not worth it.
        if (snapshot.is_settled() || !self.paging.gathers())
            && let Some(work) = snapshot.to_arrange()
        {
            self.pager.arrange(work);
        }
        (Arc::clone(snapshot.memory()), None)
    }
}

/// Looks at what a process's guest writes, where the kernel lets the agent.
fn watch(process: &VmmProcess, ranges: &[FaultRange]) -> Option<Watcher> {
    let watcher = Watcher::new(process.pid()?, ranges);
    watcher
        .inspect_err(|error| tracing::debug!(%error, "what a run writes is not learned"))
        .ok()
}

/// A pipe whose writing end goes to the VMM; what arrives is logged, and once more
/// where everybody sees it when `fate` turns out to need an explanation. Both ends
/// do not block.
pub(super) fn console(environment: EnvironmentId, fate: &Fate) -> io::Result<OwnedFd> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(reader)?;
    // Ends with the VMM process, which holds the only writing end.
    tokio::spawn(log_console(environment, fate.clone(), reader));
    Ok(writer)
}

/// Borrowed descriptors of files, in order.
pub(super) fn borrowed(files: &[File]) -> impl Iterator<Item = BorrowedFd<'_>> {
    files.iter().map(std::os::fd::AsFd::as_fd)
}
