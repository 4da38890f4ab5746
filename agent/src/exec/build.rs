//! Build: boots a function once and snapshots it at its ready point.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use snapback_proto::control::{Command, Devices, Reply};
use snapback_proto::guest::{GuestMessage, HostMessage, Init, ReadyPoint};
use snapback_vmm::snapshot::manifest::Machine;
use snapback_vmm::sys::memfd;

use super::channel::{Channel, ChannelError, out_of_turn};
use super::logs::FunctionLog;
use super::restore::{borrowed, console};
use super::{Blank, Executor, RestoreError, answer, elapsed_ns};
use crate::ids::EnvironmentId;
use crate::process::{Cause, CommandError};

/// What a function is booted from.
#[derive(Debug)]
pub struct BuildInput {
    /// What guest-init is told; the wall clock is filled in.
    pub init: Init,
    /// How long a request may run: the initialisation may take as long, too.
    pub timeout: Duration,
    /// The machine's shape.
    pub machine: Machine,
    /// The kernel (ELF).
    pub kernel: File,
    /// The initramfs with guest-init.
    pub initramfs: File,
    /// Root file system and code.
    pub disks: Vec<File>,
    /// An empty file for the state.
    pub state: File,
}

/// A function at its ready point, with nobody running any more.
#[derive(Debug)]
pub struct Built {
    /// The guest's memory.
    pub memory: OwnedFd,
    /// Its length, in bytes.
    pub memory_len: u64,
    /// Length of the state, in bytes.
    pub state_len: u64,
    /// What was measured.
    pub facts: BuildFacts,
}

/// What was measured of a build, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BuildFacts {
    /// From the start of the process to guest-init's first word.
    pub boot_ns: u64,
    /// From there to the function's ready point.
    pub init_ns: u64,
    /// Pausing the microVM and writing its state.
    pub snapshot_ns: u64,
    /// The runtime is parked in `restore/next` and not in `invocation/next`.
    pub restore_hooks: bool,
}

/// A function could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The microVM could not be started.
    #[error(transparent)]
    Start(#[from] RestoreError),
    /// The memory could not be had.
    #[error("{environment}: there is no memory for the guest")]
    Memory {
        /// Which environment.
        environment: EnvironmentId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The guest's channel failed.
    #[error("{environment}: the guest did not {goal}")]
    Channel {
        /// Which environment.
        environment: EnvironmentId,
        /// What it should have done.
        goal: &'static str,
        /// Why.
        #[source]
        source: ChannelError,
    },
    /// The guest took too long.
    #[error("{environment}: the guest did not {goal} within {limit:?}")]
    Timeout {
        /// Which environment.
        environment: EnvironmentId,
        /// What it should have done.
        goal: &'static str,
        /// The bound.
        limit: Duration,
    },
    /// The microVM ended.
    #[error("{environment}: the microVM ended: {cause}")]
    Ended {
        /// Which environment.
        environment: EnvironmentId,
        /// Why.
        cause: Cause,
    },
    /// The function failed to initialise.
    #[error("the function failed to initialise: {error_type}")]
    Init {
        /// For example `Runtime.ImportModuleError`.
        error_type: String,
        /// Lambda's error JSON.
        body: Vec<u8>,
    },
}

const GOAL_BOOT: &str = "boot";
const GOAL_INIT: &str = "reach the function's ready point";

impl Executor {
    /// Boots the function, waits for its ready point, snapshots, and ends the
    /// process.
    ///
    /// # Errors
    /// When any step fails; nothing is left running then.
    pub async fn build(&self, input: BuildInput) -> Result<Built, BuildError> {
        let start = Instant::now();
        let blank = self.blank(input.machine).await?;
        let environment = blank.id();
        let memory_len = u64::from(input.machine.memory_mib) * 1024 * 1024;
        let memory =
            memfd::create("snapback-memory", memory_len).map_err(|source| BuildError::Memory {
                environment,
                source,
            })?;
        let (process, facts, state_len) = self.boot(blank, &input, &memory, start).await?;
        // Nothing may write to the memory any more when it is copied.
        process.process.end().await;
        tracing::info!(%environment, ?facts, "built {}", input.init.function);
        Ok(Built {
            memory,
            memory_len,
            state_len,
            facts,
        })
    }

    async fn boot(
        &self,
        mut blank: Blank,
        input: &BuildInput,
        memory: &OwnedFd,
        start: Instant,
    ) -> Result<(Blank, BuildFacts, u64), BuildError> {
        let environment = blank.id();
        let channel_error = |goal| {
            move |source| BuildError::Channel {
                environment,
                goal,
                source,
            }
        };
        let (mut channel, theirs) =
            Channel::pair().map_err(|error| channel_error(GOAL_BOOT)(ChannelError::from(error)))?;
        self.power_on(&mut blank, input, memory, theirs).await?;

        let mut log = FunctionLog::new(environment, format_args!("init {}", input.init.function));
        let hello = self.bounded(&blank, GOAL_BOOT, self.timeouts.boot_ms, async {
            hello(&mut channel, &mut log)
                .await
                .map_err(channel_error(GOAL_BOOT))
        });
        hello.await?;
        let boot_ns = elapsed_ns(start);

        let start = Instant::now();
        let limit_ms = u64::try_from(input.timeout.as_millis()).unwrap_or(u64::MAX);
        let limit_ms = limit_ms.max(self.timeouts.init_ms);
        let ready = self.bounded(&blank, GOAL_INIT, limit_ms, async {
            ready(&mut channel, &input.init, &mut log)
                .await
                .map_err(channel_error(GOAL_INIT))
        });
        let ready = match ready.await {
            // The function's own doing, and told in Lambda's words.
            Err(BuildError::Timeout { limit, .. }) => {
                let (error_type, body) = answer::init_timed_out(limit);
                return Err(BuildError::Init { error_type, body });
            }
            ready => ready?,
        };
        let init_ns = elapsed_ns(start);
        log.finish();
        let point = match ready {
            Ok(point) => point,
            Err(InitFailed { error_type, body }) => {
                return Err(BuildError::Init { error_type, body });
            }
        };

        let start = Instant::now();
        let state_len = self.write_state(&mut blank, &input.state).await?;
        let facts = BuildFacts {
            boot_ns,
            init_ns,
            snapshot_ns: elapsed_ns(start),
            restore_hooks: point == ReadyPoint::RestoreNext,
        };
        Ok((blank, facts, state_len))
    }

    /// Stops the guest and has its state written; how long that is, in bytes.
    pub(super) async fn write_state(
        &self,
        blank: &mut Blank,
        state: &File,
    ) -> Result<u64, BuildError> {
        let control = &mut blank.process.control;
        let fds = [state.as_fd()];
        let answer = control
            .command(&Command::Snapshot, &fds, self.timeouts.command())
            .await?;
        match answer.reply {
            Reply::Snapshotted { state_len } => Ok(state_len),
            _ => Err(control.unexpected(&Command::Snapshot).into()),
        }
    }

    async fn power_on(
        &self,
        blank: &mut Blank,
        input: &BuildInput,
        memory: &OwnedFd,
        channel: OwnedFd,
    ) -> Result<(), BuildError> {
        let environment = blank.id();
        let console =
            console(environment, blank.process.fate()).map_err(|source| RestoreError::Console {
                environment,
                source,
            })?;
        let mut fds = vec![
            memory.as_fd(),
            input.kernel.as_fd(),
            input.initramfs.as_fd(),
            console.as_fd(),
            channel.as_fd(),
        ];
        fds.extend(borrowed(&input.disks));
        let boot = Command::Boot {
            command_line: self.command_line.clone(),
            devices: Devices::read_only_disks(input.disks.len()),
            hub: false,
        };
        let control = &mut blank.process.control;
        let answer = control
            .command(&boot, &fds, self.timeouts.command())
            .await?;
        if answer.reply != Reply::Booted {
            return Err(control.unexpected(&boot).into());
        }
        Ok(())
    }

    pub(super) async fn bounded<T>(
        &self,
        blank: &Blank,
        goal: &'static str,
        limit_ms: u64,
        work: impl Future<Output = Result<T, BuildError>>,
    ) -> Result<T, BuildError> {
        let environment = blank.id();
        let limit = Duration::from_millis(limit_ms);
        tokio::select! {
            biased;
            done = work => done,
            () = tokio::time::sleep(limit) => Err(BuildError::Timeout { environment, goal, limit }),
            cause = blank.process.fate().sealed() => {
                Err(BuildError::Ended { environment, cause })
            }
        }
    }
}

struct InitFailed {
    error_type: String,
    body: Vec<u8>,
}

async fn hello(channel: &mut Channel, log: &mut FunctionLog) -> Result<(), ChannelError> {
    let (mut reader, _) = channel.split();
    loop {
        match reader.receive().await? {
            (GuestMessage::Hello { release }, _) => {
                tracing::debug!(release, "guest-init is up");
                return Ok(());
            }
            (GuestMessage::Log { stream }, bytes) => log.push(stream, &bytes),
            (message, _) => return Err(out_of_turn(&message, "Hello")),
        }
    }
}

async fn ready(
    channel: &mut Channel,
    init: &Init,
    log: &mut FunctionLog,
) -> Result<Result<ReadyPoint, InitFailed>, ChannelError> {
    let (mut reader, mut writer) = channel.split();
    let init = Init {
        wall_clock_ns: super::wall_clock_ns(),
        ..init.clone()
    };
    writer.send(&HostMessage::Init(init), &[]).await?;
    loop {
        match reader.receive().await? {
            (GuestMessage::Ready { at }, _) => return Ok(Ok(at)),
            (GuestMessage::InitFailed { error_type }, body) => {
                let error_type = answer::error_type(error_type);
                return Ok(Err(InitFailed { error_type, body }));
            }
            (GuestMessage::Log { stream }, bytes) => log.push(stream, &bytes),
            (message, _) => return Err(out_of_turn(&message, "Ready, InitFailed or Log")),
        }
    }
}
