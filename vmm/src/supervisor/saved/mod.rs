//! The state of a machine as its snapshot holds it, and its sections in a state
//! file.

use std::fs::File;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapback_proto::cpu::CpuTemplate;

use crate::arch::x86_64::clock::ClockV1;
use crate::arch::x86_64::cpuid::{self, CpuidEntryV1};
use crate::arch::x86_64::interrupts::{self, InterruptsV1};
use crate::arch::x86_64::processor::{LAPIC_LEN, ProcessorV1};
use crate::arch::x86_64::{msrs, template};
use crate::bus::BusV1;
use crate::snapshot::{ReadError, SectionKind, StateReader, StateWriter, WriteError, Written};
use crate::sys::memfd;

const VERSION: u16 = 1;

/// The shape of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineV1 {
    /// Guest memory, in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u8,
    /// What the virtual processors can do.
    pub template: CpuTemplate,
    /// The devices that not every machine has.
    pub devices: DevicesV1,
}

/// The devices that are a machine's own choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesV1 {
    /// Its disks, in order.
    pub disks: Vec<DiskV1>,
    /// Whether it has a net device.
    pub net: bool,
}

/// A kind of disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskV1 {
    /// An image.
    ReadOnly,
    /// A base under what the machine writes.
    Scratch,
}

/// One vCPU's section: what the guest sees of the processor, and its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ProcessorSectionV1 {
    cpuid: Vec<CpuidEntryV1>,
    state: ProcessorV1,
}

/// Everything of a machine but its memory.
#[derive(Debug)]
pub struct Saved {
    /// Its shape.
    pub machine: MachineV1,
    /// The CPUID table that its guest was started with.
    pub cpuid: Arc<[CpuidEntryV1]>,
    /// Its vCPUs, in order.
    pub processors: Vec<Arc<ProcessorV1>>,
    /// Its interrupt controllers.
    pub interrupts: InterruptsV1,
    /// Its clock.
    pub clock: ClockV1,
    /// Its devices.
    pub devices: BusV1,
}

/// A state file does not describe a machine that can be built.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file breaks a rule of the format.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The sections contradict each other or their caps.
    #[error("section `{section}`: {what}")]
    Content {
        /// Name of the section.
        section: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl LoadError {
    /// Name of the section that is to blame.
    #[must_use]
    pub fn section(&self) -> Option<&'static str> {
        match self {
            Self::Read(error) => error.section(),
            Self::Content { section, .. } => Some(section),
        }
    }
}

impl Saved {
    /// Writes the state to `file`, which is empty.
    ///
    /// # Errors
    /// When a section is over its cap or the file cannot be written.
    pub fn store(&self, file: &File) -> Result<Written, WriteError> {
        let mut writer = StateWriter::new();
        writer.section(SectionKind::Machine, VERSION, &self.machine)?;
        for state in &self.processors {
            let section = ProcessorSectionV1 {
                cpuid: self.cpuid.to_vec(),
                state: (**state).clone(),
            };
            writer.section(SectionKind::Processor, VERSION, &section)?;
        }
        writer.section(SectionKind::Interrupts, VERSION, &self.interrupts)?;
        writer.section(SectionKind::Clock, VERSION, &self.clock)?;
        writer.section(SectionKind::Devices, VERSION, &self.devices)?;
        writer.finish(file)
    }

    /// Reads a state file, which is untrusted. The hashes of one in a sealed memfd were
    /// checked by whoever sealed it (the agent, when it loaded the snapshot) and are not
    /// checked again; everything else is.
    ///
    /// # Errors
    /// When it is damaged or its sections do not fit together.
    pub fn load(file: &File) -> Result<Self, LoadError> {
        let mut reader = if memfd::is_sealed(file) {
            StateReader::open_without_hashes(file)?
        } else {
            StateReader::open(file)?
        };
        let machine: MachineV1 = reader.section(SectionKind::Machine, VERSION)?;
        let count = usize::from(machine.vcpus);
        if count == 0 || reader.count(SectionKind::Processor) != count {
            return Err(content(
                "processor",
                "there is not one for each vCPU of the machine",
            ));
        }
        let mut cpuid = Vec::new();
        let mut processors = Vec::with_capacity(count);
        for _ in 0..count {
            let section = reader.section(SectionKind::Processor, VERSION)?;
            let section: ProcessorSectionV1 = section;
            check_processor(machine.template, &section)?;
            if !processors.is_empty() && section.cpuid != cpuid {
                return Err(content(
                    "processor",
                    "the vCPUs have different CPUID tables",
                ));
            }
            cpuid = section.cpuid;
            processors.push(Arc::new(section.state));
        }
        let interrupts: InterruptsV1 = reader.section(SectionKind::Interrupts, VERSION)?;
        if interrupts.ioapic.len() != interrupts::IOAPIC_LEN {
            return Err(content("interrupts", "the I/O APIC is of another length"));
        }
        let clock = reader.section(SectionKind::Clock, VERSION)?;
        let devices: BusV1 = reader.section(SectionKind::Devices, VERSION)?;
        if devices.disks.len() != machine.devices.disks.len() {
            return Err(content(
                "devices",
                "there is not one for each disk of the machine",
            ));
        }
        reader.finish()?;
        Ok(Self {
            machine,
            cpuid: cpuid.into(),
            processors,
            interrupts,
            clock,
            devices,
        })
    }
}

fn content(section: &'static str, what: &'static str) -> LoadError {
    LoadError::Content { section, what }
}

fn check_processor(template: CpuTemplate, section: &ProcessorSectionV1) -> Result<(), LoadError> {
    let state = &section.state;
    let rules = [
        (
            section.cpuid.len() <= cpuid::MAX_ENTRIES,
            "the CPUID table is too long",
        ),
        (state.msrs.len() <= msrs::MAX, "there are too many MSRs"),
        (
            !state.msrs.iter().any(|(index, _)| msrs::is_time(*index)),
            "an MSR of time is among those set with the state",
        ),
        (
            state
                .msrs
                .iter()
                .all(|(index, _)| template::reaches(template, *index)),
            "an MSR is out of the reach of its template's guests",
        ),
        (
            state.lapic.len() == LAPIC_LEN,
            "the local APIC is of another length",
        ),
    ];
    match rules.into_iter().find(|(kept, _)| !kept) {
        Some((_, what)) => Err(content("processor", what)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
