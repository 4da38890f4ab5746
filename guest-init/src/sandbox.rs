//! What of the kernel's own file systems a function may not see or change.
//!
//! The function has neither root nor capabilities, so most of this is out of its
//! reach already; this is the second lock. The lists are those of the OCI runtimes'
//! defaults, where such a path exists in this kernel.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount_bind, mount_remount};

/// Settings of the kernel, made before they become read-only.
const SETTINGS: [(&str, &str); 5] = [
    // A user namespace would give every capability, within itself.
    ("user/max_user_namespaces", "0"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/kptr_restrict", "2"),
    ("kernel/perf_event_paranoid", "3"),
    ("kernel/unprivileged_bpf_disabled", "1"),
];

/// Folders and files that are empty for everybody.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/debug",
];

/// What can be read and not changed, not even by root.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// An empty folder, to put over others.
const EMPTY: &str = "/run/empty";

/// A path could not be hidden or sealed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}")]
pub struct SandboxError {
    doing: &'static str,
    path: String,
    source: io::Error,
}

/// Hides and seals everything.
///
/// # Errors
/// When the kernel refuses.
pub fn seal() -> Result<(), SandboxError> {
    for (name, value) in SETTINGS {
        let path = format!("/proc/sys/{name}");
        // A setting that does not exist belongs to something that was not built.
        match fs::write(&path, value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("set", &path)(error));
            }
            _ => {}
        }
    }
    fs::create_dir_all(EMPTY).map_err(failed("create", EMPTY))?;
    for path in MASKED.into_iter().filter(|path| Path::new(path).exists()) {
        mask(path).map_err(failed("hide", path))?;
    }
    for path in READ_ONLY
        .into_iter()
        .filter(|path| Path::new(path).exists())
    {
        mount_bind(path, path).map_err(|errno| failed("seal", path)(errno.into()))?;
        read_only(path).map_err(failed("seal", path))?;
    }
    Ok(())
}

fn mask(path: &str) -> io::Result<()> {
    if fs::metadata(path)?.is_dir() {
        mount_bind(EMPTY, path)?;
        read_only(path)
    } else {
        Ok(mount_bind("/dev/null", path)?)
    }
}

fn read_only(path: &str) -> io::Result<()> {
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    Ok(mount_remount(path, flags, c"")?)
}

fn failed(doing: &'static str, path: &str) -> impl FnOnce(io::Error) -> SandboxError {
    let path = path.to_owned();
    move |source| SandboxError {
        doing,
        path,
        source,
    }
}
