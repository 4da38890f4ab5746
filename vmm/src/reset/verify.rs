//! Comparing a machine that stands at its snapshot with that snapshot: every page
//! of memory and every part of the state.
//!
//! Guest time is left out: it is set when the guest runs.

use std::io;
use std::sync::Arc;

use snapback_proto::control::MAX_DIFFERENCES;

use crate::arch::x86_64::clock::HostInstant;
use crate::arch::x86_64::interrupts;
use crate::arch::x86_64::processor::ProcessorV1;
use crate::bus::NotQuiet;
use crate::memory::MemoryError;
use crate::supervisor::{Live, Saved};
use crate::vcpu::{Order, VcpuError};

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
pub fn verify(live: &Live, saved: &Saved) -> Result<Vec<String>, VerifyError> {
    let mut found = Vec::new();
    for (id, (vcpu, expected)) in live.vcpus.iter().zip(&saved.processors).enumerate() {
        let msrs = expected.msrs.iter().map(|(index, _)| *index).collect();
        // Time is not compared: any instant will do.
        vcpu.order(Order::Save {
            msrs,
            probe: false,
            at: HostInstant::now(),
        })?;
        compare_processor(id, &*vcpu.saved()?, expected, &mut found);
    }
    let interrupts = interrupts::read(&live.board.vm).map_err(VerifyError::Interrupts)?;
    differ(
        "interrupt controllers",
        &interrupts,
        &saved.interrupts,
        &mut found,
    );
    differ(
        "devices",
        &live.board.bus().save()?,
        &saved.devices,
        &mut found,
    );
    let room = MAX_DIFFERENCES.saturating_sub(found.len());
    let pages = live.memory.differences(room)?;
    found.extend(pages.iter().map(|page| format!("memory page at {page:#x}")));
    found.truncate(MAX_DIFFERENCES);
    Ok(found)
}

fn compare_processor(
    id: usize,
    now: &ProcessorV1,
    then: &Arc<ProcessorV1>,
    found: &mut Vec<String>,
) {
    let name = |part: &str| format!("vCPU {id}, {part}");
    differ(&name("general registers"), &now.regs, &then.regs, found);
    differ(&name("system registers"), &now.sregs, &then.sregs, found);
    differ(
        &name("extended control registers"),
        &now.xcrs,
        &then.xcrs,
        found,
    );
    differ(&name("debug registers"), &now.debug, &then.debug, found);
    differ(&name("pending events"), &now.events, &then.events, found);
    differ(&name("run state"), &now.mp_state, &then.mp_state, found);
    for (part, now, then) in [
        ("extended state", &now.xsave, &then.xsave),
        ("local APIC", &now.lapic, &then.lapic),
    ] {
        let differs = now.len() != then.len() || now.iter().zip(then).any(|(a, b)| a != b);
        if let Some(at) = now.iter().zip(then).position(|(a, b)| a != b) {
            found.push(format!(
                "{} at byte {at:#x}: {:#x}, not {:#x}",
                name(part),
                now[at],
                then[at]
            ));
        } else if differs {
            found.push(format!(
                "{}: {} bytes, not {}",
                name(part),
                now.len(),
                then.len()
            ));
        }
    }
    for ((index, now), (_, then)) in now.msrs.iter().zip(&then.msrs) {
        if now != then {
            found.push(format!(
                "{}: {now:#x}, not {then:#x}",
                name(&format!("MSR {index:#x}"))
            ));
        }
    }
}

fn differ<T: PartialEq + std::fmt::Debug>(what: &str, now: &T, then: &T, found: &mut Vec<String>) {
    if now != then {
        found.push(
            format!("{what}: {now:?}, not {then:?}")
                .chars()
                .take(1000)
                .collect(),
        );
    }
}
