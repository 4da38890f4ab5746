//! Putting a guest into a blank machine: a kernel to boot, or a snapshot.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::Live;
use super::blank::Blank;
use super::live::AssembleError;
use super::saved::{DevicesV1, DiskV1, LoadError, MachineV1, Saved};
use crate::arch::x86_64::boot::{self, BootError};
use crate::arch::x86_64::template::{self, Unfit};
use crate::bus;
use crate::control::{BootFiles, ContinueFiles, DeviceFiles, DiskFiles, RestoreFiles};
use crate::memory::MemoryError;
use crate::reset::inventory::Parts;
use crate::reset::{Registers, load};
use crate::vcpu::VcpuError;

/// A machine could not be booted.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The memory file cannot be used.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The devices cannot be connected.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// The kernel cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The channel's socket cannot be used.
    #[error("the invocation channel's socket cannot be used")]
    Channel(#[source] io::Error),
    /// A vCPU does not start.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

/// Boots a kernel in a blank machine.
///
/// # Errors
/// When a file cannot be used or the kernel refuses a step.
pub fn boot(mut blank: Blank, mut files: BootFiles) -> Result<(Live, MachineV1), StartError> {
    let machine = shape(&blank, &files.devices);
    // What a guest that boots writes goes to its file.
    blank.spare = None;
    blank.memory.back_shared(files.memory.as_fd())?;
    let cpuid = Arc::from(blank.cpuid.as_slice());
    let live = Live::assemble(blank, files.serial, files.devices, cpuid, None)?;
    let entry = boot::load(
        &live.board.ram,
        &mut files.kernel,
        &mut files.initramfs,
        &files.command_line,
        machine.vcpus,
        &live.mmio_devices(),
    )?;
    live.board
        .bus()
        .attach_hosts(files.ends)
        .map_err(StartError::Channel)?;
    // The others wait for the first one to start them (Intel SDM volume 3, 9.4).
    if let Some(first) = live.vcpus.first() {
        first.enter(entry)?;
    }
    live.start()?;
    Ok((live, machine))
}

fn shape(blank: &Blank, files: &DeviceFiles) -> MachineV1 {
    let disks = files.disks.iter().map(|disk| match disk {
        DiskFiles::ReadOnly { .. } => DiskV1::ReadOnly,
        DiskFiles::Scratch { .. } => DiskV1::Scratch,
    });
    MachineV1 {
        memory_mib: blank.shape.memory_mib,
        vcpus: blank.shape.vcpus,
        template: blank.shape.template,
        devices: DevicesV1 {
            disks: disks.collect(),
            net: files.net.is_some(),
        },
    }
}

/// A snapshot could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state file is damaged or contradicts itself.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The snapshot is of another machine.
    #[error("section `machine`: the snapshot is of {snapshot:?}, this machine is {machine:?}")]
    Shape {
        /// What the snapshot says.
        snapshot: MachineV1,
        /// What was prepared.
        machine: MachineV1,
    },
    /// The snapshot's guest cannot go on on this host's processor.
    #[error("section `processor`: the guest cannot go on here")]
    Processor(#[from] Unfit),
    /// The snapshot has a register that KVM does not save on this host.
    #[error("section `processor`: MSR {index:#x} is not one that KVM has here")]
    Msr {
        /// Its number.
        index: u32,
    },
    /// The memory file cannot be used.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The devices cannot be connected.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// The devices do not take their state.
    #[error("section `devices`: the state does not fit the machine")]
    Devices(#[from] bus::RestoreError),
    /// The interrupt controllers do not take their state.
    #[error("section `interrupts`: KVM does not take the state")]
    Interrupts(#[source] io::Error),
    /// A vCPU does not take its state.
    #[error("section `processor`: the state cannot be set")]
    Vcpu(#[from] VcpuError),
    /// The channel's socket cannot be used.
    #[error("the invocation channel's socket cannot be used")]
    Channel(#[source] io::Error),
}

impl RestoreError {
    /// Name of the snapshot section that is to blame.
    #[must_use]
    pub fn section(&self) -> Option<&'static str> {
        match self {
            Self::Load(error) => error.section(),
            Self::Shape { .. } => Some("machine"),
            Self::Memory(_) => Some("memory"),
            Self::Devices(_) => Some("devices"),
            Self::Interrupts(_) => Some("interrupts"),
            Self::Processor(_) | Self::Msr { .. } | Self::Vcpu(_) => Some("processor"),
            Self::Assemble(_) | Self::Channel(_) => None,
        }
    }
}

/// Puts a snapshot into a blank machine. The guest stands still afterwards.
///
/// # Errors
/// When the snapshot is damaged, of another machine, or refused by KVM.
pub fn restore(mut blank: Blank, files: RestoreFiles) -> Result<(Live, Saved), RestoreError> {
    let saved = read(&blank, &files.state, &files.devices)?;
    let uffd = files.lazy.then_some(&blank.uffd);
    blank.memory.back_private(uffd, files.memory.as_fd())?;
    // Of a memory that lacks pages, nothing is copied that the pager has not brought.
    let written = files.written.filter(|_| !files.lazy);
    let whole = files.whole.filter(|_| !files.lazy);
    if let Some(place) = whole
        && let Some(spare) = blank.spare.take()
    {
        blank.spare = blank.memory.own_whole(place, spare)?;
    }
    let cpuid = Arc::clone(&saved.cpuid);
    let mut live = Live::assemble(blank, files.serial, files.devices, cpuid, written)?;
    load(&mut live, &saved, Parts::ALL, Registers::Now)?;
    Ok((live, saved))
}

/// Puts a snapshot into a blank machine for good: what its guest writes goes to the memory
/// file. The guest stands still afterwards.
///
/// # Errors
/// As [`restore`].
pub fn go_on(mut blank: Blank, files: ContinueFiles) -> Result<(Live, Saved), RestoreError> {
    let saved = read(&blank, &files.state, &files.devices)?;
    // As when it boots.
    blank.spare = None;
    blank.memory.back_shared(files.memory.as_fd())?;
    let cpuid = Arc::clone(&saved.cpuid);
    let mut live = Live::assemble(blank, files.serial, files.devices, cpuid, None)?;
    load(&mut live, &saved, Parts::ALL, Registers::Now)?;
    let attached = live.board.bus().attach_hosts(files.ends);
    attached.map_err(RestoreError::Channel)?;
    Ok((live, saved))
}

/// Reads a snapshot's state and checks that it is one of this machine.
fn read(blank: &Blank, state: &File, devices: &DeviceFiles) -> Result<Saved, RestoreError> {
    let saved = Saved::load(state)?;
    let machine = shape(blank, devices);
    if saved.machine != machine {
        return Err(RestoreError::Shape {
            snapshot: saved.machine,
            machine,
        });
    }
    let shape = blank.shape;
    if *saved.cpuid != *blank.cpuid {
        template::check(shape.template, &saved.cpuid, &blank.host_cpuid, shape.vcpus)?;
    }
    for processor in &saved.processors {
        let foreign = |(index, _): &&(u32, u64)| !blank.msrs.contains(index);
        if let Some((index, _)) = processor.msrs.iter().find(foreign) {
            return Err(RestoreError::Msr { index: *index });
        }
    }
    Ok(saved)
}
