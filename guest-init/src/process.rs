//! The processes of the runtime and of external extensions: finding their programs,
//! starting them, noticing their ends.
//!
//! They get a user of their own, no supplementary groups (std drops them with the
//! user) and no capabilities (they fall with the user id; `privileges` keeps them
//! from coming back). Their environment is built from nothing.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, pidfd_open, pidfd_send_signal, wait, waitpid,
};
use snapback_proto::guest::ExitStatus;

use crate::package::Container;
use crate::privileges::with_ordinary_priority;
use crate::sys::signals;

/// Where a function's files are and who runs them.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The function's own folder, and the runtime's working directory.
    pub task_root: PathBuf,
    /// Where a bootstrap may be, in the order in which it is looked for.
    pub bootstraps: Vec<PathBuf>,
    /// Where external extensions are.
    pub extensions: PathBuf,
    /// Who they run as; `None`: as this process.
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
            extensions: PathBuf::from("/opt/extensions"),
            user: Some(User { uid: 993, gid: 990 }),
            container,
        }
    }

    /// The runtime: a container image's command, or a bootstrap.
    ///
    /// # Errors
    /// When there is none.
    pub fn runtime(&self, environment: Vec<(String, String)>) -> Result<Program<'_>, StartError> {
        let command = self.container.as_ref().and_then(|container| {
            let (path, arguments) = container.arguments.split_first()?;
            Some((Path::new(path), arguments, container.folder.as_path()))
        });
        let (path, arguments, folder) = match command {
            Some(command) => command,
            None => (self.bootstrap()?, &[][..], self.task_root.as_path()),
        };
        Ok(Program {
            path,
            arguments,
            folder,
            environment,
            user: self.user,
        })
    }

    fn bootstrap(&self) -> Result<&Path, StartError> {
        let is_program = |path: &Path| {
            let metadata = path.metadata();
            metadata.is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        };
        let mut candidates = self.bootstraps.iter().map(PathBuf::as_path);
        let looked_at = || self.bootstraps.clone();
        candidates
            .find(|path| is_program(path))
            .ok_or_else(|| StartError::NoBootstrap {
                looked_at: looked_at(),
            })
    }
}

/// A program that is to be started.
#[derive(Debug)]
pub struct Program<'a> {
    /// The file; without a `/`, one in the folders of its `PATH`.
    pub path: &'a Path,
    /// Its arguments.
    pub arguments: &'a [OsString],
    /// Its working directory.
    pub folder: &'a Path,
    /// All its environment variables.
    pub environment: Vec<(String, String)>,
    /// Who it runs as; `None`: as this process.
    pub user: Option<User>,
}

/// A program could not be started.
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
    #[error("pipes or a process descriptor cannot be made")]
    Descriptor(#[source] io::Error),
}

/// A started program and the read ends of its output, non-blocking.
#[derive(Debug)]
pub struct Started {
    /// Its process.
    pub process: Process,
    /// Its standard output.
    pub stdout: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    exit: OwnedFd,
}

impl Process {
    /// Starts a program.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn start(program: Program<'_>) -> Result<Started, StartError> {
        let (stdout, stdout_end) = log_pipe().map_err(StartError::Descriptor)?;
        let (stderr, stderr_end) = log_pipe().map_err(StartError::Descriptor)?;

        let mut command = Command::new(program.path);
        command
            .args(program.arguments)
            .current_dir(program.folder)
            .env_clear()
            .envs(program.environment)
            .stdin(Stdio::null())
            .stdout(stdout_end)
            .stderr(stderr_end);
        if let Some(User { uid, gid }) = program.user {
            command.uid(uid).gid(gid);
        }
        let spawned = with_ordinary_priority(|| signals::with_sigchld_open(|| command.spawn()))
            .flatten()
            .map_err(StartError::Descriptor)?
            .map_err(|source| StartError::Exec {
                path: program.path.to_owned(),
                source,
            })?;
        let pid = i32::try_from(spawned.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| StartError::Descriptor(io::ErrorKind::InvalidData.into()))?;
        let exit = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| StartError::Descriptor(errno.into()))?;
        let process = Self { pid, exit };
        Ok(Started {
            process,
            stdout,
            stderr,
        })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        // One that has ended already needs no asking.
        let _ = pidfd_send_signal(&self.exit, Signal::TERM);
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

impl AsFd for Process {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.exit.as_fd()
    }
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

    /// Reaps all that have ended, and says which and how.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reap(&self, mut ended: impl FnMut(Pid, ExitStatus)) -> io::Result<()> {
        // One signal may stand for many ends; its content says nothing more.
        let mut drained = [0_u8; 512];
        let _ = rustix::io::read(&self.signals, &mut drained);
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => ended(pid, exit_status(status)),
                Err(Errno::INTR) => {}
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_images_command_is_the_runtime_in_place_of_a_bootstrap() {
        let container = Container {
            arguments: vec!["/srv/app".into(), "two words".into()],
            environment: Vec::new(),
            folder: "/srv".into(),
        };
        let layout = Layout::lambda(Some(container));
        let program = layout.runtime(Vec::new()).unwrap();
        assert_eq!(program.path, Path::new("/srv/app"));
        assert_eq!(program.arguments, ["two words"]);
        assert_eq!(program.folder, Path::new("/srv"));

        // Where there is neither, it is said where a bootstrap may be.
        let error = Layout::lambda(None).runtime(Vec::new()).unwrap_err();
        let text = error.to_string();
        for place in [
            "/var/task/bootstrap",
            "/opt/bootstrap",
            "/var/runtime/bootstrap",
        ] {
            assert!(text.contains(place), "{text}");
        }
    }
}
