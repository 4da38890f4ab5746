//! The guest's file systems.
//!
//! ```text
//!  /            overlay: EROFS of disk 0 (the runtime) below, tmpfs above; for a container
//!               image, its own root from disk 1 in place of disk 0
//!  /var/task    `task/` of disk 1 (the function's package, see `package`), read-only
//!  /opt         `opt/` of disk 1 (the function's layers), read-only, when it has any
//!  /tmp         tmpfs, 1777          /var/tmp   on the overlay, 1777
//!  /dev         devtmpfs             /dev/pts   devpts    /dev/shm  tmpfs, 1777
//!  /proc (other users' processes hidden), /sys (read-only), /run (tmpfs)
//! ```
//!
//! The initramfs holds nothing but this program: its few folders stay below the
//! new root, out of reach. Every tmpfs has a bound, as a share of the memory.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};
use rustix::process::chroot;

use crate::package::{self, Container};

/// The runtime's root file system.
const ROOT_DISK: &str = "/dev/vda";
/// The function's package.
const PACKAGE_DISK: &str = "/dev/vdb";
/// How long a disk may take to appear after boot.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);
const DISK_INTERVAL: Duration = Duration::from_millis(5);

/// Folders of the package, and where they go.
const BOUND: [(&str, &str); 2] = [("/package/task", "/var/task"), ("/package/opt", "/opt")];

const LOWER: &str = "/lower";
const SCRATCH: &str = "/scratch";
const NEW_ROOT: &str = "/newroot";

/// A file system could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel refused a mount.
    #[error("cannot mount {what} on {target}")]
    Mount {
        /// The device or kind of file system.
        what: &'static str,
        /// Where it was to go.
        target: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A folder or link could not be made.
    #[error("cannot prepare {path}")]
    Prepare {
        /// Which one.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A disk did not appear.
    #[error("{disk} did not appear within {DISK_TIMEOUT:?}")]
    NoDisk {
        /// Which one.
        disk: &'static str,
    },
    /// The package does not say what to run.
    #[error("the package cannot be understood")]
    Package(#[source] io::Error),
    /// The new root could not be entered.
    #[error("cannot enter the new root")]
    Enter(#[source] io::Error),
}

/// Turns the initramfs into the function's root file system and enters it. The result is
/// the container image that it is made of, if it is.
///
/// # Errors
/// When a disk is missing or the kernel refuses a step.
pub fn build_root() -> Result<Option<Container>, MountError> {
    // The initramfs may have no device nodes at all.
    prepare("/dev", 0o755)?;
    let device_flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    attach("devtmpfs", "/dev", "devtmpfs", device_flags, c"mode=0755")?;

    let files = MountFlags::NOSUID | MountFlags::NODEV;
    for folder in [LOWER, SCRATCH, NEW_ROOT, package::PLACE] {
        prepare(folder, 0o755)?;
    }
    let sealed = files | MountFlags::RDONLY;
    wait_for(PACKAGE_DISK)?;
    attach(PACKAGE_DISK, package::PLACE, "erofs", sealed, c"")?;
    let container = package::container(Path::new(package::PLACE)).map_err(MountError::Package)?;
    attach("tmpfs", SCRATCH, "tmpfs", files, c"mode=0755,size=25%")?;
    for folder in ["/scratch/upper", "/scratch/work"] {
        prepare(folder, 0o755)?;
    }
    let layers = if container.is_some() {
        c"lowerdir=/package/root,upperdir=/scratch/upper,workdir=/scratch/work,volatile"
    } else {
        wait_for(ROOT_DISK)?;
        attach(ROOT_DISK, LOWER, "erofs", sealed, c"")?;
        c"lowerdir=/lower,upperdir=/scratch/upper,workdir=/scratch/work,volatile"
    };
    attach("overlay", NEW_ROOT, "overlay", files, layers)?;
    for (folder, target) in BOUND {
        if Path::new(folder).is_dir() {
            bind(folder, &new(target))?;
        }
    }

    prepare(&new("/dev"), 0o755)?;
    mount_move("/dev", new("/dev")).map_err(|errno| MountError::Mount {
        what: "devtmpfs",
        target: new("/dev"),
        source: errno.into(),
    })?;
    attach_virtual()?;
    enter_new_root().map_err(MountError::Enter)?;
    Ok(container)
}

/// What the kernel itself provides, and scratch space.
fn attach_virtual() -> Result<(), MountError> {
    let files = MountFlags::NOSUID | MountFlags::NODEV;
    let data = files | MountFlags::NOEXEC;
    let sealed = data | MountFlags::RDONLY;
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    let table = [
        ("proc", "/proc", data, c"hidepid=invisible"),
        ("sysfs", "/sys", sealed, c""),
        (
            "devpts",
            "/dev/pts",
            terminals,
            c"mode=0620,gid=5,ptmxmode=0666",
        ),
        ("tmpfs", "/dev/shm", data, c"mode=1777,size=50%"),
        ("tmpfs", "/run", files, c"mode=0755,size=5%"),
        ("tmpfs", "/tmp", files, c"mode=1777,size=50%"),
    ];
    for (kind, target, flags, options) in table {
        let target = new(target);
        prepare(&target, 0o755)?;
        attach(kind, &target, kind, flags, options)?;
    }
    prepare(&new("/var/tmp"), 0o1777)?;
    // What udev would link: shells and runtimes open these.
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let path = new(link);
        match symlink(target, &path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(MountError::Prepare {
                    path,
                    source: error,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Says how much `/tmp` may hold, in MiB. It is in memory: what is in it counts there, and
/// is gone with the reset.
///
/// # Errors
/// When the kernel refuses.
pub fn bound_tmp(mib: u32) -> io::Result<()> {
    let size = std::ffi::CString::new(format!("size={mib}m"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount_remount("/tmp", flags, &size)?)
}

/// A ramfs cannot be pivoted away from: the new root is moved over it.
fn enter_new_root() -> io::Result<()> {
    std::env::set_current_dir(NEW_ROOT)?;
    mount_move(".", "/")?;
    chroot(".")?;
    std::env::set_current_dir("/")
}

fn new(path: &str) -> String {
    format!("{NEW_ROOT}{path}")
}

/// Makes a folder (and those above it) with exactly this mode.
fn prepare(path: &str, mode: u32) -> Result<(), MountError> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    // Only where it differs: on the overlay a change copies the folder up.
    let set = made.and_then(
        |()| match fs::metadata(path)?.permissions().mode() & 0o7777 {
            same if same == mode => Ok(()),
            _ => fs::set_permissions(path, Permissions::from_mode(mode)),
        },
    );
    set.map_err(|source| MountError::Prepare {
        path: path.to_owned(),
        source,
    })
}

fn attach(
    what: &'static str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: &std::ffi::CStr,
) -> Result<(), MountError> {
    mount(what, target, kind, flags, options).map_err(|errno: Errno| MountError::Mount {
        what,
        target: target.to_owned(),
        source: errno.into(),
    })
}

/// Shows a folder of the package at another place, as read-only as the package is.
fn bind(folder: &'static str, target: &str) -> Result<(), MountError> {
    prepare(target, 0o755)?;
    mount_bind(folder, target).map_err(|errno| MountError::Mount {
        what: folder,
        target: target.to_owned(),
        source: errno.into(),
    })
}

fn wait_for(disk: &'static str) -> Result<(), MountError> {
    let deadline = Instant::now() + DISK_TIMEOUT;
    while !Path::new(disk).exists() {
        if Instant::now() >= deadline {
            return Err(MountError::NoDisk { disk });
        }
        std::thread::sleep(DISK_INTERVAL);
    }
    Ok(())
}
