//! Writing a new id.

use std::io;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::bus::layout::{GED_GSI, GENERATION_ID};
use crate::bus::{Effects, Lines};
use crate::entropy;
use crate::memory::GuestRam;

/// Length of a generation id, in bytes.
pub const ID_LEN: usize = 16;

/// The guest cannot be told that it is another one. It must not run.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// There is no randomness.
    #[error("the host has no new VM generation id")]
    Entropy(#[source] io::Error),
    /// Guest memory does not take it.
    #[error("the VM generation id cannot be written to guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// Gives the guest behind `ram`, which stands still, a new id. The effects are the
/// interrupt by which it learns of it; a guest that boots needs none.
///
/// # Errors
/// [`RenewError`]: the guest would be its own twin.
pub fn renew(ram: &GuestRam) -> Result<Effects, RenewError> {
    let mut id = [0; ID_LEN];
    entropy::fill(&mut id).map_err(RenewError::Entropy)?;
    ram.write_slice(&id, GuestAddress(GENERATION_ID))?;
    Ok(Effects {
        interrupts: Lines::one(GED_GSI),
        ..Effects::NONE
    })
}
