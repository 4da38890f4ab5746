//! What the VMM process gives up before it runs a guest.
//!
//! ```text
//!  no_new_privs ─► namespaces, empty root ─► uid, gid ─► user namespace ─► capabilities
//!       ─► Landlock ─► limits ─► seccomp ─► Jailed
//! ```
//!
//! [`enter`] runs once, before the process has a second thread, and answers with a
//! [`Jailed`]: whatever may only happen in the jail asks for one. A step that is
//! wanted and not possible is an error; nothing is skipped in silence. What the
//! steps leave over is the descriptors that the agent passed, the memory, and the
//! system calls of [`policy`].
//!
//! What is not done here, because only the agent can: the process namespace (to make one would
//! keep this process from starting threads), the cgroup, the core-scheduling cookie.

mod confine;
mod identity;
pub mod policy;
mod privileges;
mod seccomp;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

pub use identity::{BadArguments, Identity};
pub use seccomp::SeccompError;

/// What the process is to give up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JailConfig {
    /// Leave the host's mount, network, IPC, UTS and cgroup namespaces, and see an
    /// empty read-only file system. Without privileges this needs unprivileged user
    /// namespaces.
    pub namespaces: bool,
    /// The user to become; needs the privilege to. `None` keeps the present one.
    pub identity: Option<Identity>,
    /// Live in a user namespace of its own, in which nobody is mapped.
    pub user_namespace: bool,
    /// Give up every capability, for good.
    pub capabilities: bool,
    /// Forbid all access by path and network, also where a namespace would let it.
    pub landlock: bool,
    /// Limits on resources.
    pub limits: Option<Limits>,
    /// What happens at a system call that is not in the policy.
    pub seccomp: Seccomp,
}

/// Most threads of a VMM process: vCPUs, the supervisor, the one that waits for the end of
/// the control socket, and some to spare.
const MAX_THREADS: u64 = crate::supervisor::MAX_VCPUS as u64 + 8;

/// Limits on resources; there are never core dumps, which would hold the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most open descriptors.
    pub open_files: u64,
    /// Longest file that the process can make, in bytes. It writes the state file
    /// and, when it has one, the scratch disk.
    pub file_len: Option<u64>,
    /// Most threads of the process's user. Only useful with an own [`Identity`].
    pub threads: Option<u64>,
}

/// What happens at a system call that is not in the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    /// It is allowed.
    Off,
    /// It is allowed and appears in the host's audit log: for finding out what the
    /// policy lacks.
    Log,
    /// It ends the process with `SIGSYS`, which the audit log explains.
    Kill,
}

impl JailConfig {
    /// Everything, for a process that root starts. Keeps the uid.
    #[must_use]
    pub const fn full() -> Self {
        Self {
            namespaces: true,
            identity: None,
            user_namespace: true,
            capabilities: true,
            landlock: true,
            limits: Some(Limits {
                // One for each vsock connection, and enough for everything else.
                open_files: crate::virtio::vsock::MAX_CONNECTIONS as u64 + 256,
                file_len: None,
                threads: None,
            }),
            seccomp: Seccomp::Kill,
        }
    }

    /// As this one, and a user of its own.
    #[must_use]
    pub const fn with_identity(self, identity: Identity) -> Self {
        let limits = match self.limits {
            Some(limits) => Some(Limits {
                threads: Some(MAX_THREADS),
                ..limits
            }),
            None => None,
        };
        Self {
            identity: Some(identity),
            limits,
            ..self
        }
    }

    /// Nothing but `no_new_privs`: the base for a configuration of single steps.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            namespaces: false,
            identity: None,
            user_namespace: false,
            capabilities: false,
            landlock: false,
            limits: None,
            seccomp: Seccomp::Off,
        }
    }
}

/// Proof that this process is in its jail. There is no way out, so it can be
/// copied and never expires.
#[derive(Debug, Clone, Copy)]
pub struct Jailed {
    seccomp: Seccomp,
}

/// A wanted step was not possible. The process is somewhere between free and
/// jailed and must end.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The jail is entered once.
    #[error("the process tried to enter its jail before")]
    Again,
    /// Other threads would stay outside.
    #[error("the process has {0} threads; the jail is entered with one")]
    Threads(usize),
    /// A system call failed.
    #[error("{step} failed")]
    Step {
        /// What was being done.
        step: &'static str,
        /// What the system call reports.
        #[source]
        source: io::Error,
    },
    /// Landlock refused its rules.
    #[error("setting up Landlock failed")]
    Landlock(#[source] landlock::RulesetError),
    /// The kernel has no Landlock, or it is switched off.
    #[error("the host's kernel does not enforce Landlock")]
    NoLandlock,
    /// The filter could not be built or installed.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

impl JailError {
    fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Step {
            step,
            source: error.into(),
        }
    }
}

/// Gives up what `config` says. Descriptors stay open.
///
/// # Errors
/// When a wanted step is not possible, the process has several threads, or it
/// tried before.
pub fn enter(config: &JailConfig) -> Result<Jailed, JailError> {
    static TRIED: AtomicBool = AtomicBool::new(false);

    if TRIED.swap(true, Ordering::SeqCst) {
        return Err(JailError::Again);
    }
    match std::fs::read_dir("/proc/self/task")
        .map_err(JailError::step("counting threads"))?
        .count()
    {
        1 => {}
        threads => return Err(JailError::Threads(threads)),
    }
    rustix::thread::set_no_new_privs(true).map_err(JailError::step("giving up new privileges"))?;
    confine::namespaces(config)?;
    privileges::give_up(config)?;
    if config.landlock {
        confine::landlock()?;
    }
    if let Some(limits) = &config.limits {
        confine::limits(limits)?;
    }
    seccomp::install(config.seccomp)?;
    Ok(Jailed {
        seccomp: config.seccomp,
    })
}

impl Jailed {
    /// Narrows the calling thread, which runs a vCPU from now on, to what such a
    /// thread needs: it starts no threads and opens no descriptors.
    ///
    /// # Errors
    /// When the filter could not be built or installed.
    pub fn confine_vcpu_thread(self) -> Result<(), SeccompError> {
        seccomp::narrow_to_vcpu(self.seccomp)
    }
}
