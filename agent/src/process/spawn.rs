//! Starting a VMM process.
//!
//! It inherits three descriptors (control socket, `/dev/kvm`,
//! `/dev/userfaultfd`), an empty environment, and nothing else. It is the first process
//! of a process namespace of its own, in which it sees nobody, and is told which
//! user to become on its way into the jail ([`snapback_vmm::jail`]).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use command_fds::{CommandFdExt as _, FdMapping, FdMappingCollision};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::{CapabilitySet, UnshareFlags};
use snapback_proto::control::{CONTROL_FD, KVM_FD, USERFAULTFD_FD};
use snapback_vmm::sys::jail::unshare;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::cgroup::{CgroupError, CgroupRoot};
use super::control::ControlClient;
use super::fate::{Cause, Fate};
use super::reaper::reap;
use super::users::{NoUserLeft, Users};
use crate::config;
use crate::ids::EnvironmentId;

/// A VMM process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A device cannot be opened.
    #[error("{} cannot be opened (`snapback doctor` says more)", path.display())]
    Device {
        /// Which device.
        path: &'static Path,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The control socket could not be made.
    #[error("{environment}: the control socket could not be made")]
    Control {
        /// For which environment.
        environment: EnvironmentId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Two descriptors for one number.
    #[error("the descriptors for the VMM process collide")]
    Descriptors(#[from] FdMappingCollision),
    /// The program could not be started.
    #[error("{environment}: {} could not be started", program.display())]
    Program {
        /// For which environment.
        environment: EnvironmentId,
        /// Which program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no user for the process.
    #[error(transparent)]
    User(#[from] NoUserLeft),
    /// The process could not be put into its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// Starts VMM processes.
#[derive(Debug)]
pub struct Launcher {
    program: PathBuf,
    cgroups: CgroupRoot,
    /// `None` when this process may not make others somebody else.
    users: Option<Arc<Users>>,
    reapers: TaskTracker,
}

/// A running VMM process. Dropping it kills the process; its reaper does the rest.
#[derive(Debug)]
pub struct VmmProcess {
    environment: EnvironmentId,
    /// `None` when it had ended already.
    pid: Option<u32>,
    /// Commands to it.
    pub control: ControlClient,
    fate: Fate,
    exited: watch::Receiver<bool>,
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        self.fate.seal(Cause::Retired);
    }
}

impl VmmProcess {
    /// Which environment it serves.
    #[must_use]
    pub const fn environment(&self) -> EnvironmentId {
        self.environment
    }

    /// Its number, which stays its own until it is reaped.
    #[must_use]
    pub const fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Why it ended, when it did.
    #[must_use]
    pub const fn fate(&self) -> &Fate {
        &self.fate
    }

    /// Kills the process and waits until it is gone, with its cgroup.
    pub async fn end(self) {
        let mut exited = self.exited.clone();
        drop(self);
        // An error means that the reaper is gone, and so is the process.
        let _ = exited.wait_for(|gone| *gone).await;
    }
}

impl Launcher {
    /// A launcher of `program`, with cgroups below `cgroups` and users of `users`. An
    /// agent without root's capabilities cannot make its processes other users: that is
    /// only logged.
    #[must_use]
    pub fn new(program: PathBuf, cgroups: CgroupRoot, users: config::Users) -> Self {
        let users = privileged().then(|| Users::new(users));
        if users.is_none() {
            tracing::warn!(
                "the agent lacks capabilities of root: VMM processes keep its user and see its \
                 process namespace"
            );
        }
        Self {
            program,
            cgroups,
            users,
            reapers: TaskTracker::new(),
        }
    }

    /// Starts one process. `guest_memory_mib` sets its cgroup's limit.
    ///
    /// # Errors
    /// When a device is missing or the program does not start.
    pub fn spawn(
        &self,
        environment: EnvironmentId,
        guest_memory_mib: u32,
    ) -> Result<VmmProcess, SpawnError> {
        let control_error = |source| SpawnError::Control {
            environment,
            source,
        };
        let (ours, theirs) = control_pair().map_err(control_error)?;
        let devices = [
            FdMapping {
                parent_fd: theirs,
                child_fd: CONTROL_FD,
            },
            FdMapping {
                parent_fd: device(Path::new("/dev/kvm"))?,
                child_fd: KVM_FD,
            },
            FdMapping {
                parent_fd: device(Path::new("/dev/userfaultfd"))?,
                child_fd: USERFAULTFD_FD,
            },
        ];
        let user = self.users.as_ref().map(Users::take).transpose()?;
        let cgroup = self.cgroups.create(environment, guest_memory_mib)?;
        let mut command = Command::new(&self.program);
        if let Some(user) = &user {
            command.args(user.identity().arguments());
        }
        command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .fd_mappings(devices.into())?;
        let started = match user {
            Some(_) => start_apart(&mut command),
            None => command.spawn(),
        };
        let child = match started {
            Ok(child) => child,
            Err(source) => {
                if let Some(cgroup) = cgroup {
                    cgroup.discard();
                }
                let program = self.program.clone();
                return Err(SpawnError::Program {
                    environment,
                    program,
                    source,
                });
            }
        };
        // The parent's copy of the child's socket goes with the command: the end
        // of the process must be the end of the socket.
        drop(command);
        let pid = child.id();
        let fate = Fate::default();
        let (exited_sender, exited) = watch::channel(false);
        let in_cgroup = match (&cgroup, pid) {
            (Some(cgroup), Some(pid)) => cgroup.add(pid),
            _ => Ok(()),
        };
        self.reapers.spawn(reap(
            environment,
            child,
            cgroup,
            user,
            fate.clone(),
            exited_sender,
        ));
        let control = ControlClient::new(environment, ours, fate.clone());
        if control.is_err() || in_cgroup.is_err() {
            fate.seal(Cause::Retired);
        }
        in_cgroup?;
        tracing::debug!(%environment, pid, "started a VMM process");
        Ok(VmmProcess {
            environment,
            pid,
            control: control.map_err(control_error)?,
            fate,
            exited,
        })
    }

    /// Waits until every process is reaped. Bounded by the caller.
    pub async fn all_reaped(&self) {
        self.reapers.close();
        self.reapers.wait().await;
    }
}

/// Whether this process may make another one a user of its own, in a process namespace
/// of its own.
fn privileged() -> bool {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SYS_ADMIN;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Starts a process as the first one of a process namespace. The namespace is that of
/// the next children of whoever made it, and keeps him from starting threads: so a
/// thread that ends at once makes it.
fn start_apart(command: &mut Command) -> io::Result<Child> {
    let runtime = Handle::current();
    let start = move || {
        let _runtime = runtime.enter();
        unshare(UnshareFlags::NEWPID)?;
        command.spawn()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("spawn".to_owned());
        let started = thread.spawn_scoped(scope, start)?.join();
        started.unwrap_or_else(|_| Err(io::Error::other("the thread that starts it panicked")))
    })
}

/// Our end does not block, theirs does.
fn control_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

fn device(path: &'static Path) -> Result<OwnedFd, SpawnError> {
    let open = File::options().read(true).write(true).open(path);
    open.map(OwnedFd::from)
        .map_err(|source| SpawnError::Device { path, source })
}
