//! Guest time: the time stamp counter and KVM's clock. Both go on from the
//! snapshot's values at the moment a restored or reset guest runs, so no request
//! sees how long its machine waited.
//!
//! The counters of several vCPUs and KVM's clock belong together: a guest compares
//! them. So all are read at one instant of the host and go on from one
//! ([`HostInstant`]); KVM then also sees equal offsets and keeps its clock stable.

use std::io;

use kvm_bindings::{KVM_CLOCK_HOST_TSC, kvm_clock_data};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::msrs;
use crate::sys::kvm::{host_tsc, set_tsc_offset, tsc_offset};

/// An instant of the host, by its time stamp counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostInstant(u64);

impl HostInstant {
    /// This one.
    #[must_use]
    pub fn now() -> Self {
        Self(host_tsc())
    }
}

/// KVM's clock (`KVM_GET_CLOCK`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockV1 {
    /// Nanoseconds since the VM was made, less the time it was stopped.
    pub kvmclock_ns: u64,
}

/// Reads KVM's clock, and the instant at which it showed that.
///
/// # Errors
/// What KVM reports.
pub fn read(vm: &VmFd) -> io::Result<(ClockV1, HostInstant)> {
    let (clock, around) = at_an_instant(|| vm.get_clock().map_err(io::Error::from))?;
    // KVM only knows the instant where its clock runs from the counter.
    let at = if clock.flags & KVM_CLOCK_HOST_TSC == 0 {
        around
    } else {
        HostInstant(clock.host_tsc)
    };
    let kvmclock_ns = clock.clock;
    Ok((ClockV1 { kvmclock_ns }, at))
}

/// Lets KVM's clock go on from `state`. Returns the instant from which the
/// counters have to go on.
///
/// # Errors
/// What KVM reports.
pub fn start(vm: &VmFd, state: &ClockV1) -> io::Result<HostInstant> {
    let clock = kvm_clock_data {
        clock: state.kvmclock_ns,
        ..Default::default()
    };
    let (_, at) = at_an_instant(|| vm.set_clock(&clock).map_err(io::Error::from))?;
    Ok(at)
}

/// Makes a request that can be repeated, until it took so little time that its end
/// is its instant: a thread that loses its processor in between would move clock and
/// counters apart, and a guest that compares them gives its counter up.
fn at_an_instant<T>(request: impl Fn() -> io::Result<T>) -> io::Result<(T, HostInstant)> {
    /// Ticks of the host's counter: well below a millisecond, and many times what
    /// the request takes.
    const SHORT: u64 = 500_000;
    const TRIES: u32 = 5;
    for _ in 1..TRIES {
        let HostInstant(before) = HostInstant::now();
        let done = request()?;
        let after = HostInstant::now();
        if after.0.wrapping_sub(before) < SHORT {
            return Ok((done, after));
        }
    }
    Ok((request()?, HostInstant::now()))
}

/// A vCPU's time: its counter and the deadline of its timer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuTimeV1 {
    /// The guest's time stamp counter.
    pub tsc: u64,
    /// The counter value at which the timer fires; 0 when it is off.
    pub deadline: u64,
}

/// Reads a stopped vCPU's time as it was `at` an instant.
///
/// # Errors
/// What KVM reports.
pub fn read_vcpu(vcpu: &VcpuFd, at: HostInstant) -> io::Result<VcpuTimeV1> {
    let tsc = at.0.wrapping_add(tsc_offset(vcpu)?);
    match msrs::read(vcpu, &[msrs::TSC_DEADLINE])?[..] {
        [(_, deadline)] => Ok(VcpuTimeV1 { tsc, deadline }),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Lets a vCPU's time go on from `state` as if `at` had been its instant. Writing the deadline also drops an
/// expiry that was pending, so it comes after the counter.
///
/// # Errors
/// What KVM reports.
pub fn start_vcpu(vcpu: &VcpuFd, state: &VcpuTimeV1, at: HostInstant) -> io::Result<()> {
    set_tsc_offset(vcpu, state.tsc.wrapping_sub(at.0))?;
    msrs::write(vcpu, &[(msrs::TSC_DEADLINE, state.deadline)])
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_that_was_interrupted_is_repeated() {
        let requests = Cell::new(0);
        let (nth, _) = at_an_instant(|| {
            requests.set(requests.get() + 1);
            if requests.get() < 3 {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(requests.get())
        })
        .unwrap();
        assert!((3..=5).contains(&nth), "{nth}");
    }

    #[test]
    fn a_host_that_is_always_busy_gets_an_answer_and_a_failure_is_one() {
        let slow = || {
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        };
        assert!(at_an_instant(slow).is_ok());
        let failing = || Err::<(), _>(io::ErrorKind::NotFound.into());
        assert!(at_an_instant(failing).is_err());
    }
}
