//! The branch-predictor barrier between the requests of two principals in one
//! machine.
//!
//! What one guest taught a processor's indirect branch predictor can steer what the
//! next one speculates on (Spectre variant 2). Between two virtual machines, KVM asks
//! the processor to forget it (`MSR_IA32_PRED_CMD`, IBPB) when a vCPU is loaded on a
//! processor where another one was loaded last. A machine that was reset is the same
//! vCPU to KVM, so nothing happens by itself. A process cannot ask for IBPB directly,
//! but it can load another vCPU: each vCPU's thread does, with the only vCPU of a
//! second, empty machine that never runs and that no guest can reach.
//!
//! ```text
//!  thread of a vCPU:  stay on this processor ─ load the other vCPU ─ run the guest ─ stay no longer
//!                                               └─ IBPB                └─ IBPB (its own vCPU is loaded again)
//! ```
//!
//! The thread stays where it is until its guest stops, because KVM on AMD keeps for
//! each processor which vCPU was loaded there last, and forgets it only when that vCPU
//! is freed: on a processor where the machine ran for an earlier principal, and nobody
//! else since, there would be no barrier. (On Intel, a vCPU that moves is loaded anew.)
//!
//! Whether KVM's request does anything is the kernel's choice and the processor's: see
//! [`crate::probe::branch_barrier`].

use std::io;

use kvm_ioctls::{Kvm, VcpuFd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::step::{StepError, kernel};
use crate::sys::cpu;

/// The vCPU of an empty machine: no memory, no interrupt controller, never run.
#[derive(Debug)]
pub struct Barrier(VcpuFd);

impl Barrier {
    /// Makes the empty machine. One serves all vCPUs of a process.
    ///
    /// # Errors
    /// When KVM has no room for it.
    pub fn new(kvm: &Kvm) -> Result<Self, StepError> {
        let vm = kvm
            .create_vm()
            .map_err(kernel("create a VM for the barrier"))?;
        // The kernel keeps the VM for as long as its vCPU is open.
        let vcpu = vm
            .create_vcpu(0)
            .map_err(kernel("create a vCPU for the barrier"))?;
        Ok(Self(vcpu))
    }

    /// Keeps the calling thread on its processor and loads the other vCPU there. Until
    /// the result is [released](Stay::release), whatever vCPU the thread runs next was
    /// not the last one to be loaded.
    pub(super) fn load(&self) -> Result<Stay, StepError> {
        let stay = Stay::here().map_err(kernel("keep a vCPU's thread on its processor"))?;
        // Any request that loads a vCPU would do; this one neither changes it nor
        // needs anything of it.
        self.0
            .get_mp_state()
            .map_err(kernel("load the barrier's vCPU"))?;
        Ok(stay)
    }
}

/// A thread stays on one processor.
#[derive(Debug)]
pub(super) struct Stay {
    /// Where it could be before.
    allowed: CpuSet,
}

impl Stay {
    fn here() -> io::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let cpu = cpu::current()?;
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut only = CpuSet::new();
        only.set(cpu);
        // Had the thread been moved since it looked, this moves it back.
        sched_setaffinity(None, &only)?;
        Ok(Self { allowed })
    }

    /// Lets the thread go where it could before.
    ///
    /// # Errors
    /// What the kernel reports; the thread stays.
    pub(super) fn release(self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.allowed)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_stays_is_allowed_on_one_processor_and_then_on_all_again() {
        let before = sched_getaffinity(None).unwrap();
        let stay = Stay::here().unwrap();
        let now = sched_getaffinity(None).unwrap();
        assert_eq!(now.count(), 1);
        assert!(now.is_set(cpu::current().unwrap()));
        stay.release().unwrap();
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
