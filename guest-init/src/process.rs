//! The runtime's process: finding its bootstrap, starting it, noticing its end.
//!
//! The runtime gets its own user, no supplementary groups (std drops them with the
//! user) and no capabilities (they fall with the user id; `privileges` keeps them
//! from coming back). Its environment is built from nothing.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, wait, waitpid};
use snapback_proto::guest::{ExitStatus, Init};

use crate::environment;
use crate::package::Container;
use crate::sys::signals;

/// Where a function's files are and who runs them.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The function's own folder, and the runtime's working directory.
    pub task_root: PathBuf,
    /// Where a bootstrap may be, in the order in which it is looked for.
    pub bootstraps: Vec<PathBuf>,
    /// Who the runtime runs as; `None`: as this process.
    pub user: Option<User>,
    /// The container image whose command is the runtime, in place of a bootstrap.
    pub container: Option<Container>,
}

/// A user and group.
#[derive(Debug, Clone, Copy)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Layout {
    /// As in Lambda's environment.
    #[must_use]
    pub fn lambda(container: Option<Container>) -> Self {
        let folders = ["/var/task", "/opt", "/var/runtime"];
        Self {
            task_root: PathBuf::from("/var/task"),
            bootstraps: folders.map(|f| Path::new(f).join("bootstrap")).to_vec(),
            user: Some(User { uid: 993, gid: 990 }),
            container,
        }
    }

    fn bootstrap(&self) -> Option<&Path> {
        let is_program = |path: &Path| {
            let metadata = path.metadata();
            metadata.is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        };
        let mut candidates = self.bootstraps.iter().map(PathBuf::as_path);
        candidates.find(|path| is_program(path))
    }
}

/// The runtime could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no bootstrap in any of the places.
    #[error("Couldn't find valid bootstrap(s): {looked_at:?}")]
    NoBootstrap {
        /// The places.
        looked_at: Vec<PathBuf>,
    },
    /// It cannot be executed.
    #[error("{}: {source}", path.display())]
    Exec {
        /// The bootstrap.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// guest-init could not prepare its part.
    #[error("the runtime's pipes or process descriptor cannot be made")]
    Descriptor(#[source] io::Error),
}

/// A started runtime and the read ends of its output, non-blocking.
#[derive(Debug)]
pub struct Started {
    /// Its process.
    pub runtime: Runtime,
    /// Its standard output.
    pub stdout: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
}

/// The runtime's process.
#[derive(Debug)]
pub struct Runtime {
    pid: Pid,
    exit: OwnedFd,
}

impl Runtime {
    /// Finds the bootstrap and starts it.
    ///
    /// # Errors
    /// When there is none, or it cannot be executed.
    pub fn start(layout: &Layout, init: &Init, api: SocketAddr) -> Result<Started, StartError> {
        let (mut command, path) = match &layout.container {
            Some(container) => of_container(container, layout, init, api)?,
            None => of_bootstrap(layout, init, api)?,
        };
        let (stdout, stdout_end) = log_pipe().map_err(StartError::Descriptor)?;
        let (stderr, stderr_end) = log_pipe().map_err(StartError::Descriptor)?;
        command
            .stdin(Stdio::null())
            .stdout(stdout_end)
            .stderr(stderr_end);
        if let Some(User { uid, gid }) = layout.user {
            command.uid(uid).gid(gid);
        }
        let spawned = signals::with_sigchld_open(|| command.spawn())
            .map_err(StartError::Descriptor)?
            .map_err(|source| StartError::Exec { path, source })?;
        let pid = i32::try_from(spawned.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| StartError::Descriptor(io::ErrorKind::InvalidData.into()))?;
        let exit = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| StartError::Descriptor(errno.into()))?;
        let runtime = Self { pid, exit };
        Ok(Started {
            runtime,
            stdout,
            stderr,
        })
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When somebody else has reaped it.
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        let ended = waitpid(Some(self.pid), WaitOptions::NOHANG)?;
        Ok(ended.map(|(_, status)| exit_status(status)))
    }
}

impl AsFd for Runtime {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.exit.as_fd()
    }
}

/// The bootstrap in the function's own folder, with Lambda's variables.
fn of_bootstrap(
    layout: &Layout,
    init: &Init,
    api: SocketAddr,
) -> Result<(Command, PathBuf), StartError> {
    let looked_at = layout.bootstraps.clone();
    let path = layout
        .bootstrap()
        .ok_or(StartError::NoBootstrap { looked_at })?;
    let task_root = layout.task_root.to_string_lossy();
    let mut command = Command::new(path);
    command
        .current_dir(&layout.task_root)
        .env_clear()
        .envs(environment::variables(init, &task_root, api));
    Ok((command, path.to_owned()))
}

/// A container image's command in its own folder. Its variables give way to the function's.
fn of_container(
    container: &Container,
    layout: &Layout,
    init: &Init,
    api: SocketAddr,
) -> Result<(Command, PathBuf), StartError> {
    let Some((program, arguments)) = container.arguments.split_first() else {
        let looked_at = Vec::new();
        return Err(StartError::NoBootstrap { looked_at });
    };
    let mut init = init.clone();
    init.environment
        .splice(0..0, container.environment.iter().cloned());
    let task_root = layout.task_root.to_string_lossy();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(&container.folder)
        .env_clear()
        .envs(environment::variables(&init, &task_root, api));
    Ok((command, PathBuf::from(program)))
}

/// The read end does not block, the write end does: a runtime expects that of its
/// standard output.
fn log_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&read_end, fcntl_getfl(&read_end)? | OFlags::NONBLOCK)?;
    Ok((read_end, write_end))
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    match status.terminating_signal() {
        Some(signal) => ExitStatus::Signal(signal),
        None => ExitStatus::Code(status.exit_status().unwrap_or(0)),
    }
}

/// Every process whose parent is gone: they are PID 1's to reap.
#[derive(Debug)]
pub struct Orphans {
    signals: OwnedFd,
}

impl Orphans {
    /// Begins to hear of ended processes. Only for PID 1: it takes the status of
    /// every child of this process.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn adopt() -> io::Result<Self> {
        let signals = signals::sigchld()?;
        Ok(Self { signals })
    }

    /// Reaps all that have ended; says how `runtime` ended if it was among them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reap(&self, runtime: Option<&Runtime>) -> io::Result<Option<ExitStatus>> {
        // One signal may stand for many ends; its content says nothing more.
        let mut drained = [0_u8; 512];
        let _ = rustix::io::read(&self.signals, &mut drained);
        let mut ended = None;
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if runtime.is_some_and(|r| r.pid == pid) => {
                    ended = Some(exit_status(status));
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) | Err(Errno::CHILD) => return Ok(ended),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Orphans {
    /// Readable when a process may have ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}
