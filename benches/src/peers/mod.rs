//! Other VMMs, restoring a snapshot of the same guest in the same run.
//!
//! ```text
//!  Vmm::name ─► save (boot, first answers, snapshot) ─► restore, again and again ─► rows
//!   ├─ Qemu             always: Debian has it
//!   ├─ Firecracker      ┐ when the caller names their programs. Not run against the programs
//!   └─ CloudHypervisor  ┘ themselves so far: benches/tests/peers holds their requests against
//!                         the documents
//! ```
//!
//! Each gets Snapback's kernel, root file system and function, and `peer-init`, which
//! puts less between the function and its host than Snapback's own guest-init does.
//! The memory of a snapshot lies in a file on a tmpfs; where a VMM writes to that file, it is
//! copied for each restore before the clock starts.
//!
//! Clocks, as Snapback's: `restore/b` ends with the first answer of PID 1, `restore/c`
//! with the function's. Both begin with the command to restore; the row's `process`
//! says whether the VMM's process already waited for it.

mod cloud_hypervisor;
mod dial;
mod firecracker;
mod http;
mod loadvm;
mod process;
mod qemu;

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::report::{Peer, Samples, milliseconds};

pub use cloud_hypervisor::CloudHypervisor;
pub use dial::Dial;
pub use firecracker::Firecracker;
pub use loadvm::loadvm;
pub use qemu::Qemu;

/// How long a peer may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);
/// The guest's vsock address: above those that are taken (vsock(7)).
const CID: u32 = 42;

/// Programs of peers that not every host has; QEMU's is Debian's.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    /// Firecracker.
    pub firecracker: Option<PathBuf>,
    /// Cloud Hypervisor, and a kernel with virtio over PCI for its guest.
    pub cloud_hypervisor: Option<(PathBuf, PathBuf)>,
}

impl Programs {
    /// All peers there are.
    #[must_use]
    pub fn vmms(&self) -> Vec<Box<dyn Vmm>> {
        let mut vmms: Vec<Box<dyn Vmm>> = vec![Box::new(Qemu)];
        if let Some(program) = &self.firecracker {
            vmms.push(Box::new(Firecracker::new(program.clone())));
        }
        if let Some((program, kernel)) = &self.cloud_hypervisor {
            vmms.push(Box::new(CloudHypervisor::new(
                program.clone(),
                kernel.clone(),
            )));
        }
        vmms
    }
}

/// A VMM that can restore a snapshot.
pub trait Vmm: Send {
    /// Its name.
    fn peer(&self) -> &'static str;

    /// Its name and version, as the report has it.
    ///
    /// # Errors
    /// When it cannot be run.
    fn name(&self) -> Result<String, PeerError>;

    /// Conditions of its restores, beside those of every peer.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn params(&self) -> Result<Vec<(&'static str, Value)>, PeerError> {
        Ok(Vec::new())
    }

    /// Boots the guest once and leaves its snapshot in the guest's scratch directory.
    ///
    /// # Errors
    /// When VMM or guest do not do their part.
    fn save(&self, guest: &Guest) -> Result<(), PeerError>;

    /// Restores the snapshot once.
    ///
    /// # Errors
    /// When VMM or guest do not do their part.
    fn restore(&self, guest: &Guest, start: Start) -> Result<Times, PeerError>;
}

/// Where the clock of a restore begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the command to a process that waits for it.
    Waiting,
    /// With the start of the process.
    None,
}

/// How long one restore took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    /// Until PID 1 has answered.
    pub ready: f64,
    /// Until the function has.
    pub done: f64,
}

impl Times {
    /// Those of a guest that `ask` waits for, since `begin`.
    fn of(
        begin: Instant,
        mut ask: impl FnMut(&str) -> Result<(), PeerError>,
    ) -> Result<Self, PeerError> {
        ask("ping\n")?;
        let ready = milliseconds(begin.elapsed());
        ask("{}\n")?;
        let done = milliseconds(begin.elapsed());
        Ok(Self { ready, done })
    }
}

/// Boots the guest in `vmm`, saves it, and restores it `rounds` times in a process that
/// waits and `rounds` times in one that does not. Blocks.
///
/// # Errors
/// When the VMM or the guest does not do its part.
pub fn measure(vmm: &dyn Vmm, guest: &Guest, rounds: usize) -> Result<Peer, PeerError> {
    let peer = vmm.name()?;
    let more = vmm.params()?;
    vmm.save(guest)?;
    let mut rows = Vec::new();
    for start in [Start::Waiting, Start::None] {
        let mut ready = Samples::new("ms");
        let mut done = Samples::new("ms");
        for _ in 0..rounds {
            let times = vmm.restore(guest, start)?;
            ready.push(times.ready);
            done.push(times.done);
        }
        let process = match start {
            Start::Waiting => "waiting",
            Start::None => "none",
        };
        let params = || {
            let all = [("process", json!(process)), ("runtime", json!("python"))];
            all.into_iter().chain(more.clone())
        };
        rows.extend(ready.row("restore/b", params()));
        rows.extend(done.row("restore/c", params()));
    }
    Ok(Peer { peer, rows })
}

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
    /// The VMM's process ended.
    #[error("{peer}: its process ended ({status}): {said}")]
    Ended {
        /// Which peer.
        peer: &'static str,
        /// How.
        status: ExitStatus,
        /// The end of what it said.
        said: String,
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

/// What could not be done, for `map_err`.
fn prepare(peer: &'static str, doing: impl Into<String>) -> impl FnOnce(io::Error) -> PeerError {
    let doing = doing.into();
    move |source| PeerError::Prepare {
        peer,
        doing,
        source,
    }
}
