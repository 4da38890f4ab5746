//! Stopping a booted guest at an instant when nothing is in flight, and reading
//! its state.

use std::sync::Arc;

use super::io::quiesce;
use super::saved::MachineV1;
use super::{Live, Saved};
use crate::arch::x86_64::clock;
use crate::bus::{NotQuiet, RebaseError};
use crate::control::SnapshotFiles;
use crate::reset::inventory::chips;
use crate::snapshot::{WriteError, Written};
use crate::step::{StepError, kernel};
use crate::vcpu::{Stop, VcpuError};

/// How many rounds a device gets to finish its work: about two seconds.
const QUIET_ROUNDS: u32 = 400;

/// A snapshot could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A vCPU did not stop or its state cannot be read.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A device did not finish.
    #[error("the guest's devices still have work in flight after two seconds")]
    Busy,
    /// A device took up work again.
    #[error(transparent)]
    NotQuiet(#[from] NotQuiet),
    /// What a disk holds cannot be kept.
    #[error(transparent)]
    Disk(#[from] RebaseError),
    /// A step with the kernel failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The state cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl SnapshotError {
    /// Why the guest stopped by itself, when that is what happened.
    #[must_use]
    pub fn guest_stopped(&self) -> Option<&Stop> {
        match self {
            Self::Vcpu(error) => error.guest_stopped(),
            _ => None,
        }
    }
}

/// Stops the guest of `live` and writes its state and its scratch disks to `files`.
///
/// # Errors
/// When the guest does not stop, its devices do not come to rest, or a part of
/// the state cannot be read or written.
pub fn take(
    live: &mut Live,
    machine: MachineV1,
    files: SnapshotFiles,
) -> Result<Written, SnapshotError> {
    live.pause()?;
    if !quiesce(live, QUIET_ROUNDS).map_err(kernel("serve the devices"))? {
        return Err(SnapshotError::Busy);
    }
    live.board.bus().rebase_disks(files.disks)?;
    let (clock, at) = clock::read(&live.board.vm).map_err(kernel("read the clock"))?;
    let mut processors = Vec::with_capacity(live.vcpus.len());
    for vcpu in &mut live.vcpus {
        processors.push(Arc::new(vcpu.probe(&live.msrs, at)?));
    }
    let saved = Saved {
        machine,
        cpuid: Arc::clone(&live.cpuid),
        processors,
        interrupts: chips::capture(&live.board.vm)
            .map_err(kernel("read the interrupt controllers"))?,
        clock,
        devices: live.board.bus().save()?,
    };
    Ok(saved.store(&files.state)?)
}
