//! Restore: a blank microVM becomes one that is parked at its function's ready
//! point.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use snapback_proto::CONTROL_VERSION;
use snapback_proto::control::{self, Command, Devices, FaultRange, Reply};
use snapback_vmm::snapshot::manifest::Machine;

use super::{Executor, elapsed_ns};
use crate::config::Fill;
use crate::ids::EnvironmentId;
use crate::pager::{MemoryCache, RegisterError, Registration};
use crate::process::{Cause, CommandError, Fate, SpawnError, VmmProcess};
use crate::snapshots::{Disks, FirstRun, Snapshot};
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
    uffd: OwnedFd,
    ranges: Vec<FaultRange>,
}

/// A microVM of one snapshot. Dropping it kills its process.
#[derive(Debug)]
pub struct Environment {
    pub(super) process: VmmProcess,
    /// `None` when the snapshot's memory was complete. Ends after the process was told
    /// to end.
    memory: Option<Registration>,
    snapshot: Arc<Snapshot>,
    /// When its first request is recorded.
    pub(super) first_run: Option<FirstRun>,
    restore_ns: u64,
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

    /// From the `Restore` command to its reply, in nanoseconds.
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
        match (answer.fds.pop(), count) {
            (Some(uffd), 1) => Ok(Blank {
                process,
                uffd,
                ranges,
            }),
            _ => Err(RestoreError::Descriptors { environment, count }),
        }
    }

    /// Puts a snapshot into a blank microVM of the same shape.
    ///
    /// # Errors
    /// When the snapshot cannot be loaded. The microVM is destroyed.
    pub async fn restore(
        &self,
        blank: Blank,
        snapshot: Arc<Snapshot>,
    ) -> Result<Environment, RestoreError> {
        let Blank {
            mut process,
            uffd,
            ranges,
        } = blank;
        let environment = process.environment();
        let fate = process.fate().clone();
        let failed = move |error: io::Error| fate.seal(Cause::Page(Arc::new(error)));
        let (cache, first_run) = self.memory_for(&snapshot);
        let lazy = !cache.is_complete();
        let register = || {
            self.pager
                .register(uffd, ranges, Arc::clone(&cache), failed)
        };
        let memory = lazy.then(register).transpose();
        let memory = memory.map_err(|source| RestoreError::Pager {
            environment,
            source,
        })?;
        let console =
            console(environment, process.fate()).map_err(|source| RestoreError::Console {
                environment,
                source,
            })?;
        let start = Instant::now();
        let disks = snapshot.disks();
        let mut fds = vec![cache.descriptor(), snapshot.state(), console.as_fd()];
        fds.extend(disks.iter().map(File::as_fd));
        let command = Command::Restore {
            devices: Devices::read_only_disks(disks.len()),
            lazy,
        };
        let answer = process
            .control
            .command(&command, &fds, self.timeouts.command())
            .await?;
        if answer.reply != Reply::Restored {
            return Err(process.control.unexpected(&command).into());
        }
        drop(fds);
        let restore_ns = elapsed_ns(start);
        tracing::debug!(
            %environment,
            snapshot = %snapshot.id(),
            took = ?Duration::from_nanos(restore_ns),
            "restored"
        );
        Ok(Environment {
            process,
            memory,
            snapshot,
            first_run,
            restore_ns,
        })
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
        (Arc::clone(snapshot.memory()), None)
    }
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
