//! Other VMMs, restoring a snapshot of the same guest in the same run.
//!
//! Each gets Snapback's kernel, root file system and function, and `peer-init`, which
//! puts less between the function and its host than Snapback's own guest-init does.
//! The memory of a snapshot lies in a file on a tmpfs, copied for each restore before
//! the clock starts.
//!
//! Clocks, as Snapback's: `restore/b` ends with the first answer of PID 1, `restore/c`
//! with the function's. Both begin with the command to restore; the row's `process`
//! says whether the VMM's process already waited for it.

mod dial;
mod loadvm;
mod qemu;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use dial::Dial;
pub use loadvm::loadvm;
pub use qemu::qemu;

/// How long a peer may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// What every peer runs.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The kernel, an ELF file with a PVH note.
    pub kernel: PathBuf,
    /// `peer-init`, packed.
    pub initramfs: PathBuf,
    /// The root file system, shown as the first disk.
    pub root: PathBuf,
    /// The function's code, shown as the second disk.
    pub code: PathBuf,
    /// Guest memory, in MiB.
    pub memory_mib: u32,
    /// A directory on a tmpfs.
    pub scratch: PathBuf,
}

/// A peer could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// A program or file is missing.
    #[error("{peer}: cannot {doing}")]
    Prepare {
        /// Which peer.
        peer: &'static str,
        /// What was tried.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The VMM refused a command.
    #[error("{peer}: {command} was answered with {answer}")]
    Refused {
        /// Which peer.
        peer: &'static str,
        /// What it was asked.
        command: String,
        /// What it said.
        answer: String,
    },
    /// The guest does not answer.
    #[error("{peer}: the guest does not answer")]
    Silent {
        /// Which peer.
        peer: &'static str,
        /// The last attempt.
        #[source]
        source: io::Error,
    },
}
