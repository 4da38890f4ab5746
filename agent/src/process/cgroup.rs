//! One cgroup (v2) per environment, below one root that the agent owns.
//!
//! ```text
//!  /sys/fs/cgroup/snapback/            locked by the agent that uses it
//!      env-0123456789abcdef/           memory.max, pids.max, cpu.weight
//! ```
//!
//! Without cgroup v2, or without one of its controllers, the agent works and
//! says so once. What an earlier life of the agent left behind is killed and
//! removed at start.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::config;
use crate::ids::EnvironmentId;

/// `CGROUP2_SUPER_MAGIC` of statfs(2).
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Where cgroup v2 is mounted: alone, or beside the older one.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// How often and how long apart a removal is tried: processes take a moment to
/// disappear after they were killed.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// Cgroups cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Another agent uses the same root.
    #[error("another agent uses the cgroup {}: set `cgroup.root`", path.display())]
    InUse {
        /// The root.
        path: PathBuf,
    },
    /// A file below the root gave an error.
    #[error("{operation} the cgroup {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Which cgroup.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The directory below which every environment has its cgroup.
#[derive(Debug)]
pub struct CgroupRoot {
    place: Option<Place>,
    limits: config::Cgroup,
    warned: AtomicBool,
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// Held for the lock on it.
    _lock: OwnedFd,
}

impl CgroupRoot {
    /// Takes the root, kills and removes what an earlier agent left in it.
    ///
    /// # Errors
    /// When another agent uses it. That there is no cgroup v2 is only logged.
    pub fn open(limits: &config::Cgroup) -> Result<Self, CgroupError> {
        let wanted = limits.root.clone().or_else(|| {
            let mounted = |mount: &&str| is_cgroup2(Path::new(mount));
            MOUNTS
                .into_iter()
                .find(mounted)
                .map(|mount| Path::new(mount).join("snapback"))
        });
        let limits = limits.clone();
        let none = |limits| Self {
            place: None,
            limits,
            warned: AtomicBool::new(false),
        };
        let Some(path) = wanted else {
            tracing::warn!("there is no cgroup v2: microVMs run without memory and CPU limits");
            return Ok(none(limits));
        };
        match take(&path) {
            Ok(lock) => {
                let place = Some(Place { path, _lock: lock });
                Ok(Self {
                    place,
                    limits,
                    warned: AtomicBool::new(false),
                })
            }
            Err(error @ CgroupError::InUse { .. }) => Err(error),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cgroups cannot be used: microVMs run without memory and CPU limits"
                );
                Ok(none(limits))
            }
        }
    }

    /// Makes an environment's cgroup; `None` where there are no cgroups.
    ///
    /// # Errors
    /// When the directory cannot be made. A limit that the host has no
    /// controller for is only logged, once.
    pub fn create(
        &self,
        environment: EnvironmentId,
        guest_memory_mib: u32,
    ) -> Result<Option<Cgroup>, CgroupError> {
        let Some(place) = &self.place else {
            return Ok(None);
        };
        let path = place.path.join(environment.to_string());
        fs::create_dir(&path).map_err(|source| CgroupError::Io {
            operation: "creating",
            path: path.clone(),
            source,
        })?;
        let memory = u64::from(guest_memory_mib) + u64::from(self.limits.overhead_mib);
        let settings = [
            ("memory.max", (memory * 1024 * 1024).to_string()),
            ("memory.oom.group", "1".to_owned()),
            ("pids.max", self.limits.pids_max.to_string()),
            ("cpu.weight", self.limits.cpu_weight.to_string()),
        ];
        for (file, value) in settings {
            if let Err(error) = fs::write(path.join(file), value)
                && !self.warned.swap(true, Ordering::Relaxed)
            {
                tracing::warn!(%error, file, "a limit of the microVMs' cgroups cannot be set");
            }
        }
        Ok(Some(Cgroup { path }))
    }
}

/// One environment's cgroup. [`Cgroup::remove`] it when its processes are gone.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Moves a process into it.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).map_err(|source| {
            CgroupError::Io {
                operation: "moving a process into",
                path: self.path.clone(),
                source,
            }
        })
    }

    /// Kills whatever is in it.
    pub fn kill(&self) {
        kill(&self.path);
    }

    /// Removes it when nothing was ever put into it.
    pub fn discard(self) {
        let _ = fs::remove_dir(&self.path);
    }

    /// Kills whatever is in it and removes it; tries for at most two seconds.
    pub async fn remove(self) {
        kill(&self.path);
        for _ in 0..REMOVE_TRIES {
            match fs::remove_dir(&self.path) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(_) => tokio::time::sleep(REMOVE_PAUSE).await,
            }
        }
        tracing::error!(cgroup = %self.path.display(), "the cgroup cannot be removed");
    }
}

fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path)
        .is_ok_and(|statfs| u64::try_from(statfs.f_type).is_ok_and(|kind| kind == CGROUP2_MAGIC))
}

fn take(path: &Path) -> Result<OwnedFd, CgroupError> {
    let failed = |operation, source: io::Error| CgroupError::Io {
        operation,
        path: path.to_owned(),
        source,
    };
    let parent = path.parent().unwrap_or(Path::new("/"));
    if !is_cgroup2(parent) {
        return Err(failed("using", io::ErrorKind::Unsupported.into()));
    }
    fs::create_dir_all(path).map_err(|error| failed("creating", error))?;
    let lock = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| failed("opening", errno.into()))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(
        |errno| match errno {
            rustix::io::Errno::WOULDBLOCK => CgroupError::InUse {
                path: path.to_owned(),
            },
            errno => failed("locking", errno.into()),
        },
    )?;
    for directory in [parent, path] {
        for controller in ["+memory", "+pids", "+cpu"] {
            // A controller that the host lacks shows when a limit is set.
            let _ = fs::write(directory.join("cgroup.subtree_control"), controller);
        }
    }
    clear(path);
    Ok(lock)
}

/// Kills and removes the environments of an earlier life.
fn clear(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let left_over = name
            .to_str()
            .is_some_and(|n| n.parse::<EnvironmentId>().is_ok());
        if !left_over {
            continue;
        }
        let path = entry.path();
        kill(&path);
        let removed = (0..REMOVE_TRIES).any(|_| {
            let gone = fs::remove_dir(&path).is_ok();
            if !gone {
                std::thread::sleep(REMOVE_PAUSE);
            }
            gone
        });
        if removed {
            tracing::info!(cgroup = %path.display(), "removed what an earlier agent left behind");
        } else {
            tracing::error!(cgroup = %path.display(), "a cgroup left behind cannot be removed");
        }
    }
}

fn kill(path: &Path) {
    // Linux 5.14; before that, one process after the other.
    if fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in processes
        .lines()
        .filter_map(|line| line.trim().parse().ok())
    {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_is_no_cgroup_is_done_without() {
        let directory = tempfile::tempdir().unwrap();
        let limits = config::Cgroup {
            root: Some(directory.path().join("snapback")),
            ..Default::default()
        };
        let root = CgroupRoot::open(&limits).unwrap();
        assert!(
            root.create(EnvironmentId::from_number(1), 128)
                .unwrap()
                .is_none()
        );
    }
}
