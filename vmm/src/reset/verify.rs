//! Comparing a machine that stands at its snapshot with that snapshot: every page
//! of memory and every line of the inventory.
//!
//! What a guest is given when it starts is left out: its time is set then.

use std::io;

use snapback_proto::control::MAX_DIFFERENCES;

use crate::arch::x86_64::clock::HostInstant;
use crate::bus::NotQuiet;
use crate::memory::MemoryError;
use crate::reset::inventory::{self, Parts, chips};
use crate::supervisor::{Live, Saved};
use crate::vcpu::VcpuError;

/// A machine could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A vCPU's state cannot be read.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The interrupt controllers cannot be read.
    #[error("the interrupt controllers cannot be read")]
    Interrupts(#[source] io::Error),
    /// A device has work in flight.
    #[error(transparent)]
    Devices(#[from] NotQuiet),
    /// The memory cannot be compared.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What differs, in words, at most [`MAX_DIFFERENCES`]; empty when nothing does.
///
/// # Errors
/// When a part cannot be read.
pub fn verify(live: &mut Live, saved: &Saved) -> Result<Vec<String>, VerifyError> {
    let mut found = Vec::new();
    for (entry, part) in inventory::of_host(Parts::ALL) {
        found.extend(named(entry.name, (part.compare)(live)));
    }
    let devices = live.board.bus().save()?;
    for (entry, part) in inventory::of_devices(Parts::ALL) {
        found.extend(named(entry.name, (part.compare)(&devices, &saved.devices)));
    }
    let chips = chips::capture(&live.board.vm).map_err(VerifyError::Interrupts)?;
    for (entry, part) in inventory::of_chips(Parts::ALL) {
        found.extend(named(entry.name, (part.compare)(&chips, &saved.interrupts)));
    }
    for (id, (vcpu, expected)) in live.vcpus.iter_mut().zip(&saved.processors).enumerate() {
        let msrs: Vec<u32> = expected.msrs.iter().map(|(index, _)| *index).collect();
        // Time is not compared: any instant will do.
        let now = vcpu.save(&msrs, HostInstant::now())?;
        for (entry, part) in inventory::of_vcpus(Parts::ALL) {
            let name = format!("vCPU {id}, {}", entry.name);
            found.extend(named(&name, (part.compare)(&now, expected)));
        }
    }
    let room = MAX_DIFFERENCES.saturating_sub(found.len());
    let pages = live.memory.differences(room)?;
    found.extend(pages.iter().map(|page| format!("memory page at {page:#x}")));
    found.truncate(MAX_DIFFERENCES);
    Ok(found)
}

fn named(name: &str, found: Vec<String>) -> impl Iterator<Item = String> {
    found.into_iter().map(move |what| format!("{name}: {what}"))
}
