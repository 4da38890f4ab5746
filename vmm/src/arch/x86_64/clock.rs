//! Guest time: the time stamp counter and KVM's clock. Both go on from the
//! snapshot's values at the moment a restored or reset guest runs, so no request
//! sees how long its machine waited.

use std::io;

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::msrs;
use crate::sys::kvm::{host_tsc, set_tsc_offset};

/// KVM's clock (`KVM_GET_CLOCK`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockV1 {
    /// Nanoseconds since the VM was made, less the time it was stopped.
    pub kvmclock_ns: u64,
}

/// Reads KVM's clock.
///
/// # Errors
/// What KVM reports.
pub fn read(vm: &VmFd) -> io::Result<ClockV1> {
    let clock = vm.get_clock().map_err(io::Error::from)?;
    Ok(ClockV1 {
        kvmclock_ns: clock.clock,
    })
}

/// Lets KVM's clock go on from `state`.
///
/// # Errors
/// What KVM reports.
pub fn start(vm: &VmFd, state: &ClockV1) -> io::Result<()> {
    let clock = kvm_clock_data {
        clock: state.kvmclock_ns,
        ..Default::default()
    };
    vm.set_clock(&clock).map_err(io::Error::from)
}

/// A vCPU's time: its counter and the deadline of its timer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuTimeV1 {
    /// The guest's time stamp counter.
    pub tsc: u64,
    /// The counter value at which the timer fires; 0 when it is off.
    pub deadline: u64,
}

/// Reads a vCPU's time.
///
/// # Errors
/// What KVM reports.
pub fn read_vcpu(vcpu: &VcpuFd) -> io::Result<VcpuTimeV1> {
    let values = msrs::read(vcpu, &[msrs::TSC, msrs::TSC_DEADLINE])?;
    match values[..] {
        [(_, tsc), (_, deadline)] => Ok(VcpuTimeV1 { tsc, deadline }),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Lets a vCPU's time go on from `state`. Writing the deadline also drops an
/// expiry that was pending, so it comes after the counter.
///
/// # Errors
/// What KVM reports.
pub fn start_vcpu(vcpu: &VcpuFd, state: &VcpuTimeV1) -> io::Result<()> {
    set_tsc_offset(vcpu, state.tsc.wrapping_sub(host_tsc()))?;
    msrs::write(vcpu, &[(msrs::TSC_DEADLINE, state.deadline)])
}
