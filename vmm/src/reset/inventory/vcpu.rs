//! The state of one vCPU that stands still, part by part.

use std::io;

use kvm_bindings::kvm_mp_state;
use kvm_ioctls::VcpuFd;

use super::{Part, Parts, difference, difference_in_bytes, of_vcpus};
use crate::arch::x86_64::clock::{self, HostInstant};
use crate::arch::x86_64::msrs;
use crate::arch::x86_64::processor::{self, ProcessorError, ProcessorV1, Shape};
use crate::arch::x86_64::run_page;

/// A stopped vCPU that is read.
#[derive(Debug)]
pub struct Reading<'a> {
    /// The vCPU.
    pub vcpu: &'a VcpuFd,
    /// What all vCPUs of the VM have in common.
    pub shape: &'a Shape,
    /// Numbers of the MSRs to read.
    pub msrs: &'a [u32],
    /// The instant whose time is the state's.
    pub at: HostInstant,
}

/// A stopped vCPU that is set.
#[derive(Debug)]
pub struct Setting<'a> {
    /// The vCPU.
    pub vcpu: &'a mut VcpuFd,
    /// What all vCPUs of the VM have in common.
    pub shape: &'a Shape,
    /// What it is set to.
    pub state: &'a ProcessorV1,
    /// Which parts are set: for a part that is set by the request of another.
    pub parts: Parts,
    /// Whether it is the only vCPU of its machine.
    pub alone: bool,
    /// Whether KVM is to take what it can when the vCPU is entered ([`run_page`]).
    pub at_entrance: bool,
}

/// How one part is read, set and compared.
#[derive(Debug, Clone, Copy)]
pub struct VcpuPart {
    /// Reads its fields.
    pub capture: fn(&Reading<'_>, &mut ProcessorV1) -> io::Result<()>,
    /// Sets it.
    pub restore: fn(&mut Setting<'_>) -> io::Result<()>,
    /// Says what differs: what is there, what the snapshot says.
    pub compare: fn(&ProcessorV1, &ProcessorV1) -> Vec<String>,
}

/// XSAVE area.
pub const EXTENDED_STATE: VcpuPart = VcpuPart {
    capture: |from, into| {
        into.xsave = from.shape.read_xsave(from.vcpu)?;
        Ok(())
    },
    restore: |to| to.shape.write_xsave(to.vcpu, &to.state.xsave),
    compare: |now, then| difference_in_bytes(&now.xsave, &then.xsave),
};

/// XCR0.
pub const EXTENDED_CONTROL: VcpuPart = VcpuPart {
    capture: |from, into| {
        into.xcrs = processor::read_xcrs(from.vcpu)?;
        Ok(())
    },
    restore: |to| processor::write_xcrs(to.vcpu, &to.state.xcrs),
    compare: |now, then| difference(&now.xcrs, &then.xcrs),
};

/// `KVM_GET_REGS`.
pub const GENERAL_REGISTERS: VcpuPart = VcpuPart {
    capture: |from, into| {
        into.regs = (&from.vcpu.get_regs()?).into();
        Ok(())
    },
    restore: |to| {
        let regs = (&to.state.regs).into();
        if to.at_entrance {
            run_page::leave_regs(to.vcpu, regs);
            return Ok(());
        }
        Ok(to.vcpu.set_regs(&regs)?)
    },
    compare: |now, then| difference(&now.regs, &then.regs),
};

/// `KVM_GET_SREGS`.
pub const SYSTEM_REGISTERS: VcpuPart = VcpuPart {
    capture: |from, into| {
        into.sregs = (&from.vcpu.get_sregs()?).into();
        Ok(())
    },
    restore: |to| {
        let sregs = (&to.state.sregs).into();
        if to.at_entrance {
            run_page::leave_sregs(to.vcpu, sregs);
            return Ok(());
        }
        Ok(to.vcpu.set_sregs(&sregs)?)
    },
    compare: |now, then| difference(&now.sregs, &then.sregs),
};

/// `KVM_GET_LAPIC`.
pub const LOCAL_APIC: VcpuPart = VcpuPart {
    capture: |from, into| {
        into.lapic = processor::read_lapic(from.vcpu)?;
        Ok(())
    },
    restore: |to| processor::write_lapic(to.vcpu, &to.state.lapic, to.alone),
    compare: |now, then| difference_in_bytes(&now.lapic, &then.lapic),
};

/// Those that the snapshot holds.
pub const MSRS: VcpuPart = VcpuPart {
    capture: |from, into| {
        into.msrs = msrs::read(from.vcpu, from.msrs)?;
        Ok(())
    },
    restore: |to| {
        // The deadline of the timer goes with them: one request less.
        let timer = to.parts.has(Part::Timer).then_some(DISARMED);
        let values = to.state.msrs.iter().copied();
        msrs::write_changed(to.vcpu, values.chain(timer))
    },
    compare: |now, then| {
        if now.msrs.len() != then.msrs.len() {
            return vec![format!("{}, not {}", now.msrs.len(), then.msrs.len())];
        }
        let pairs = now.msrs.iter().zip(&then.msrs);
        pairs
            .filter(|(now, then)| now != then)
            .map(|((index, now), (_, then))| format!("{index:#x}: {now:#x}, not {then:#x}"))
            .collect()
    },
};

/// No deadline.
const DISARMED: (u32, u64) = (msrs::TSC_DEADLINE, 0);

/// The deadline, which is off while the machine stands still. Set with the MSRs, if they are.
pub const TIMER: VcpuPart = VcpuPart {
    capture: |from, into| {
        into.time = clock::read_vcpu(from.vcpu, from.at)?;
        Ok(())
    },
    restore: |to| match to.parts.has(Part::Msrs) {
        true => Ok(()),
        false => msrs::write(to.vcpu, &[DISARMED]),
    },
    compare: |now, _| difference(&now.time.deadline, &0),
};

/// `KVM_GET_DEBUGREGS`.
pub const DEBUG_REGISTERS: VcpuPart = VcpuPart {
    capture: |from, into| {
        into.debug = (&from.vcpu.get_debug_regs()?).into();
        Ok(())
    },
    restore: |to| Ok(to.vcpu.set_debug_regs(&(&to.state.debug).into())?),
    compare: |now, then| difference(&now.debug, &then.debug),
};

/// `KVM_GET_VCPU_EVENTS`.
pub const EVENTS: VcpuPart = VcpuPart {
    capture: |from, into| {
        into.events = (&from.vcpu.get_vcpu_events()?).into();
        Ok(())
    },
    restore: |to| {
        let events = (&to.state.events).into();
        if to.at_entrance {
            run_page::leave_events(to.vcpu, events);
            return Ok(());
        }
        Ok(to.vcpu.set_vcpu_events(&events)?)
    },
    compare: |now, then| difference(&now.events, &then.events),
};

/// `KVM_GET_MP_STATE`.
pub const RUN_STATE: VcpuPart = VcpuPart {
    capture: |from, into| {
        into.mp_state = from.vcpu.get_mp_state()?.mp_state;
        Ok(())
    },
    restore: |to| {
        let mp_state = to.state.mp_state;
        Ok(to.vcpu.set_mp_state(kvm_mp_state { mp_state })?)
    },
    compare: |now, then| difference(&now.mp_state, &then.mp_state),
};

/// Reads everything, from the end of the table up.
///
/// # Errors
/// Names the part that KVM does not tell.
pub fn capture(from: &Reading<'_>) -> Result<ProcessorV1, ProcessorError> {
    let mut state = ProcessorV1::default();
    for (entry, part) in of_vcpus(Parts::ALL).rev() {
        (part.capture)(from, &mut state).map_err(ProcessorError::reading(entry.name))?;
    }
    Ok(state)
}

/// Sets the parts that `to` names.
///
/// # Errors
/// Names the part that KVM does not take.
pub fn restore(to: &mut Setting<'_>) -> Result<(), ProcessorError> {
    run_page::clear(to.vcpu);
    for (entry, part) in of_vcpus(to.parts) {
        (part.restore)(to).map_err(ProcessorError::setting(entry.name))?;
    }
    Ok(())
}
