//! Registers that KVM takes from a vCPU's run page when the vCPU is entered
//! (`KVM_CAP_SYNC_REGS`), instead of by a request for each: general registers, system
//! registers and events.
//!
//! ```text
//!  a reset: requests for all else ─► the machine waits ─► interrupts of the start ─► KVM_RUN
//!           └ these in the page                                                       └ taken
//! ```
//!
//! They are taken in the order of the inventory, but after all other parts and after the
//! interrupts that a start raises, and nobody hears before the entrance that KVM refuses
//! them. So only a reset leaves them here, to a state that the vCPU took by requests before,
//! and only where the later instant makes no difference ([`suits`]). Until then the vCPU has
//! the registers of the last life: whoever reads it calls [`bring_in`] first.

use std::io;

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS,
    KVM_SYNC_X86_SREGS, kvm_regs, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::{Cap, SyncReg, VcpuFd, VmFd};

use super::interrupts::{InterruptsV1, raises_only_vectors};
use super::processor::ProcessorV1;

const ALL: [SyncReg; 3] = [
    SyncReg::Register,
    SyncReg::SystemRegister,
    SyncReg::VcpuEvents,
];

/// Whether KVM takes all three.
#[must_use]
pub fn is_offered(vm: &VmFd) -> bool {
    let all = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
    let offered = u32::try_from(vm.check_extension_int(Cap::SyncRegs)).unwrap_or(0);
    offered & all == all
}

/// Whether the only vCPU of a machine comes to the same state when its registers are taken
/// at the entrance. Several vCPUs do not: the first to be entered could send another one an
/// NMI or an INIT, which that one's own events would undo.
#[must_use]
pub fn suits(state: &ProcessorV1, interrupts: &InterruptsV1) -> bool {
    let sregs = &state.sregs;
    // KVM waits for an INIT or a SIPI before it looks into the page.
    let can_be_entered = matches!(state.mp_state, KVM_MP_STATE_RUNNABLE | KVM_MP_STATE_HALTED);
    // With system registers in real mode, KVM may wake a halted vCPU.
    let is_protected = sregs.cr0 & CR0_PE != 0;
    // MSRs are checked, and some cut, by the width of addresses at the time: values that
    // were good in four levels of tables are good in five, but not the other way.
    let has_narrow_addresses = sregs.cr4 & CR4_LA57 == 0;
    // Setting CR8 writes the local APIC's task priority, without its lower half.
    let task_priority = state.lapic.get(TASK_PRIORITY).copied().map(u64::from);
    let has_cr8 = task_priority == Some((sregs.cr8 & 0xf) << 4);
    // What the start's interrupts add to the local APIC stays; an NMI, SMI or INIT would be
    // undone by the events.
    let is_quiet = raises_only_vectors(interrupts);
    can_be_entered && is_protected && has_narrow_addresses && has_cr8 && is_quiet
}

/// Protection (Intel SDM volume 3, 2.5).
const CR0_PE: u64 = 1;
/// Linear addresses of 57 bits (the same).
const CR4_LA57: u64 = 1 << 12;
/// Where a local APIC has it (Intel SDM volume 3, 11.4.1), in bytes.
const TASK_PRIORITY: usize = 0x80;

/// Whether the guest's last run left its local APIC in the place and the mode of this base,
/// so that its registers can be set before the system registers are.
pub fn has_apic_base(vcpu: &mut VcpuFd, base: u64) -> bool {
    vcpu.get_kvm_run().apic_base == base
}

/// Nothing is to be taken.
pub fn clear(vcpu: &mut VcpuFd) {
    for registers in ALL {
        vcpu.clear_sync_dirty_reg(registers);
    }
}

/// Leaves the general registers.
pub fn leave_regs(vcpu: &mut VcpuFd, regs: kvm_regs) {
    vcpu.sync_regs_mut().regs = regs;
    vcpu.set_sync_dirty_reg(SyncReg::Register);
}

/// Leaves the system registers.
pub fn leave_sregs(vcpu: &mut VcpuFd, sregs: kvm_sregs) {
    vcpu.sync_regs_mut().sregs = sregs;
    vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
}

/// Leaves the events.
pub fn leave_events(vcpu: &mut VcpuFd, events: kvm_vcpu_events) {
    vcpu.sync_regs_mut().events = events;
    vcpu.set_sync_dirty_reg(SyncReg::VcpuEvents);
}

/// Has a stopped vCPU take now what waits for its entrance, by requests and in KVM's order.
/// (Entering it for an instant would do as well, but when another thread than before enters a
/// vCPU, older kernels wait for all processors, and do so again when its own thread comes back.)
///
/// # Errors
/// What KVM reports; the rest still waits then.
pub fn bring_in(vcpu: &mut VcpuFd) -> io::Result<()> {
    let left = vcpu.sync_regs();
    for registers in ALL {
        if vcpu.get_kvm_run().kvm_dirty_regs & registers as u64 == 0 {
            continue;
        }
        match registers {
            SyncReg::Register => vcpu.set_regs(&left.regs)?,
            SyncReg::SystemRegister => vcpu.set_sregs(&left.sregs)?,
            SyncReg::VcpuEvents => vcpu.set_vcpu_events(&left.events)?,
        }
        vcpu.clear_sync_dirty_reg(registers);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::interrupts::IOAPIC_LEN;

    fn state() -> (ProcessorV1, InterruptsV1) {
        let mut state = ProcessorV1::default();
        state.sregs.cr0 = CR0_PE;
        state.sregs.cr8 = 1;
        state.lapic = vec![0; 1024];
        state.lapic[TASK_PRIORITY] = 0x10;
        state.mp_state = KVM_MP_STATE_HALTED;
        let interrupts = InterruptsV1 {
            ioapic: vec![0; IOAPIC_LEN],
            ..InterruptsV1::default()
        };
        (state, interrupts)
    }

    #[test]
    fn the_registers_of_a_guest_that_waits_for_an_interrupt_can_be_left_in_the_page() {
        let (state, interrupts) = state();
        assert!(suits(&state, &interrupts));
    }

    #[test]
    fn where_the_later_instant_would_make_a_difference_nothing_is_left_in_the_page() {
        let changes: [fn(&mut ProcessorV1, &mut InterruptsV1); 6] = [
            |state, _| state.mp_state = kvm_bindings::KVM_MP_STATE_UNINITIALIZED,
            |state, _| state.sregs.cr0 = 0,
            |state, _| state.sregs.cr4 |= CR4_LA57,
            |state, _| state.lapic[TASK_PRIORITY] = 0x11,
            |state, _| state.lapic.clear(),
            // The first line raises an NMI.
            |_, interrupts| interrupts.ioapic[25] = 4,
        ];
        for (nth, change) in changes.into_iter().enumerate() {
            let (mut state, mut interrupts) = state();
            change(&mut state, &mut interrupts);
            assert!(!suits(&state, &interrupts), "change {nth}");
        }
    }
}
