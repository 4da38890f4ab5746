//! Model-specific registers: which ones belong to a snapshot, and how they are
//! read and set.
//!
//! KVM lists those it can save. Some are treated apart:
//!
//! * the time stamp counter is set through its offset when the guest runs (see
//!   [`super::clock`]);
//! * so is the deadline of the timer, which depends on the counter;
//! * the wall-clock registers make KVM write guest memory when they are set. The
//!   guest sets them before each use, so a snapshot holds them as zero, which
//!   writes nothing;
//! * those of Hyper-V, some of which are clocks, are out of every guest's reach
//!   (see [`super::cpuid::enforce`]) and left out.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use snapback_proto::cpu::CpuTemplate;

use super::template;

/// `IA32_TIME_STAMP_COUNTER` (Intel SDM volume 4, table 2-2).
const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE` (Intel SDM volume 3, 11.5.4.1).
pub const TSC_DEADLINE: u32 = 0x6e0;
const TIME: [u32; 2] = [TSC, TSC_DEADLINE];
/// `MSR_KVM_WALL_CLOCK` and `MSR_KVM_WALL_CLOCK_NEW` (kernel document
/// `virt/kvm/x86/msr.rst`).
pub const WALL_CLOCK: [u32; 2] = [0x11, 0x4b56_4d00];

/// Most registers that one snapshot may hold.
pub const MAX: usize = 1024;

/// Numbers of the registers that KVM can save, without those of time, of Hyper-V,
/// and those out of the reach of a guest of `template`.
///
/// # Errors
/// What KVM reports.
pub fn listed(kvm: &Kvm, template: CpuTemplate) -> io::Result<Vec<u32>> {
    let list = kvm.get_msr_index_list().map_err(io::Error::from)?;
    let indices = list.as_slice().iter().copied();
    Ok(indices
        .filter(|i| !is_time(*i) && !HYPER_V.contains(i) && template::reaches(template, *i))
        .collect())
}

/// Synthetic registers of Hyper-V (Hypervisor Top Level Functional Specification,
/// appendix B).
const HYPER_V: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_ffff;

/// Whether a register belongs to the guest's time, which is set apart.
#[must_use]
pub fn is_time(index: u32) -> bool {
    TIME.contains(&index)
}

/// Those of `indices` that this vCPU has and lets one set to the value they
/// have. The wall-clock registers are zero afterwards. One request for each: only
/// used when a snapshot is made.
#[must_use]
pub fn settable(vcpu: &VcpuFd, indices: &[u32]) -> Vec<u32> {
    let settable = |index: &u32| {
        let value = match read(vcpu, &[*index]).as_deref() {
            Ok([(_, value)]) => *value,
            _ => return false,
        };
        let value = if WALL_CLOCK.contains(index) { 0 } else { value };
        write(vcpu, &[(*index, value)]).is_ok()
    };
    indices.iter().copied().filter(settable).collect()
}

/// Reads `indices` in one request.
///
/// # Errors
/// What KVM reports; `NotFound` when it stops at a register it does not have.
pub fn read(vcpu: &VcpuFd, indices: &[u32]) -> io::Result<Vec<(u32, u64)>> {
    let entries: Vec<_> = indices.iter().map(|&index| entry(index, 0)).collect();
    let mut msrs = Msrs::from_entries(&entries).map_err(io::Error::other)?;
    let count = vcpu.get_msrs(&mut msrs).map_err(io::Error::from)?;
    if count != entries.len() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(msrs
        .as_slice()
        .iter()
        .map(|entry| (entry.index, entry.data))
        .collect())
}

/// Sets `values` in one request.
///
/// # Errors
/// What KVM reports; a register that it refuses is named.
pub fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> io::Result<()> {
    let entries: Vec<_> = values
        .iter()
        .map(|&(index, data)| entry(index, data))
        .collect();
    let msrs = Msrs::from_entries(&entries).map_err(io::Error::other)?;
    let count = vcpu.set_msrs(&msrs).map_err(io::Error::from)?;
    match values.get(count) {
        None => Ok(()),
        Some((index, _)) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("KVM does not take the value of MSR {index:#x}"),
        )),
    }
}

/// Sets those of `values` that the vCPU does not have already: reading one costs KVM
/// a fraction of setting it, and a request changes few.
///
/// # Errors
/// As [`read`] and [`write`].
pub fn write_changed(
    vcpu: &VcpuFd,
    values: impl Iterator<Item = (u32, u64)> + Clone,
) -> io::Result<()> {
    let entries: Vec<_> = values.clone().map(|(index, _)| entry(index, 0)).collect();
    let mut now = Msrs::from_entries(&entries).map_err(io::Error::other)?;
    if vcpu.get_msrs(&mut now)? != entries.len() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let pairs = values.zip(now.as_slice());
    let changed = pairs.filter(|((_, then), now)| *then != now.data);
    let changed: Vec<_> = changed.map(|(then, _)| then).collect();
    if changed.is_empty() {
        return Ok(());
    }
    write(vcpu, &changed)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}
