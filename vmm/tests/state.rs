//! Every part of the state that KVM holds: saved, changed, restored and found equal,
//! part by part, on a virtual machine without a guest. The devices' parts are
//! tested the same way beside their code.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests count as code outside tests"
)]

#[path = "../src/bus/testing.rs"]
mod testing;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_mp_state};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use snapback_proto::cpu::CpuTemplate;
use snapback_vmm::arch::x86_64::clock::{self, HostInstant, VcpuTimeV1};
use snapback_vmm::arch::x86_64::processor::{ProcessorV1, Shape};
use snapback_vmm::arch::x86_64::{TSS_ADDRESS, msrs, run_page};
use snapback_vmm::reset::inventory::vcpu::{self, Reading, Setting};
use snapback_vmm::reset::inventory::{Part, Parts, chips, of_vcpus};
use snapback_vmm::sys::kvm::{get_xsave, lapic_bytes, lapic_from_bytes, set_xsave};
use testing::assert_restores;

struct Machine {
    kvm: Kvm,
    vm: VmFd,
    vcpu: VcpuFd,
}

fn machine() -> Machine {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    vm.set_tss_address(TSS_ADDRESS).unwrap();
    vm.create_irq_chip().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    vcpu.set_cpuid2(&cpuid).unwrap();
    Machine { kvm, vm, vcpu }
}

/// Changes one part of a vCPU.
type Change = fn(&VcpuFd, &Shape);

/// One change for each part of a vCPU but its time.
const CHANGES: [(Part, Change); 9] = [
    (Part::GeneralRegisters, |vcpu, _| {
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rax, regs.r15, regs.rip) = (0x1234, 0x5678, 0x9abc);
        vcpu.set_regs(&regs).unwrap();
    }),
    (Part::SystemRegisters, |vcpu, _| {
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cr2, sregs.gdt.base, sregs.fs.base) = (0x1000, 0x2000, 0x3000);
        vcpu.set_sregs(&sregs).unwrap();
    }),
    (Part::ExtendedState, |vcpu, shape| {
        let mut area = get_xsave(vcpu, shape.xsave_len).unwrap();
        // Register XMM7, and that x87 and SSE state are in use (Intel SDM volume 1,
        // 13.4).
        area[160 + 7 * 16] = 0xa5;
        area[512] |= 0b11;
        set_xsave(vcpu, shape.xsave_len, &area).unwrap();
    }),
    (Part::ExtendedControl, |vcpu, _| {
        let mut xcrs = vcpu.get_xcrs().unwrap();
        xcrs.xcrs[0].value ^= 0b10;
        vcpu.set_xcrs(&xcrs).unwrap();
    }),
    (Part::DebugRegisters, |vcpu, _| {
        let mut debug = vcpu.get_debug_regs().unwrap();
        debug.db = [1, 2, 3, 4];
        vcpu.set_debug_regs(&debug).unwrap();
    }),
    (Part::LocalApic, |vcpu, _| {
        let mut bytes = lapic_bytes(&vcpu.get_lapic().unwrap()).to_vec();
        // Divide configuration and initial count of the timer.
        (bytes[0x3e0], bytes[0x380]) = (0xb, 0x77);
        vcpu.set_lapic(&lapic_from_bytes(&bytes).unwrap()).unwrap();
    }),
    (Part::Msrs, |vcpu, _| {
        const KERNEL_GS_BASE: u32 = 0xc000_0102;
        msrs::write(vcpu, &[(KERNEL_GS_BASE, 0xffff_8000_0000_1000)]).unwrap();
    }),
    (Part::Events, |vcpu, _| {
        let mut events = vcpu.get_vcpu_events().unwrap();
        events.nmi.masked = 1;
        events.interrupt.shadow = 1;
        events.flags |= kvm_bindings::KVM_VCPUEVENT_VALID_SHADOW;
        vcpu.set_vcpu_events(&events).unwrap();
    }),
    (Part::RunState, |vcpu, _| {
        let mp_state = kvm_bindings::KVM_MP_STATE_HALTED;
        vcpu.set_mp_state(kvm_mp_state { mp_state }).unwrap();
    }),
];

fn read(vcpu: &VcpuFd, shape: &Shape, msrs: &[u32]) -> ProcessorV1 {
    let at = HostInstant::now();
    let from = Reading {
        vcpu,
        shape,
        msrs,
        at,
    };
    // Time passes between two readings, and has tests of its own.
    ProcessorV1 {
        time: VcpuTimeV1::default(),
        ..vcpu::capture(&from).unwrap()
    }
}

/// How registers come from the run page into a vCPU.
type BringIn = fn(&mut VcpuFd);

/// Whether registers are left in the run page, and how they are brought in then.
const WAYS: [(bool, BringIn); 3] = [
    (false, |_| ()),
    (true, |vcpu| run_page::bring_in(vcpu).unwrap()),
    (true, |vcpu| {
        vcpu.set_kvm_immediate_exit(1);
        assert_eq!(vcpu.run().unwrap_err().errno(), libc::EINTR);
        vcpu.set_kvm_immediate_exit(0);
    }),
];

#[test]
fn each_part_of_a_processor_restores() {
    let tested = CHANGES.iter().map(|(part, _)| *part);
    let mut tested: Vec<_> = tested.chain([Part::Timer]).collect();
    tested.sort_unstable();
    let listed = of_vcpus(Parts::ALL).map(|(entry, _)| entry.part);
    assert_eq!(tested, listed.collect::<Vec<_>>());
    let cases = WAYS
        .iter()
        .flat_map(|way| CHANGES.map(|change| (way, change)));
    for ((at_entrance, bring_in), (part, change)) in cases {
        println!("{part:?}, at the entrance: {at_entrance}");
        let Machine { kvm, vm, mut vcpu } = machine();
        let shape = Shape::of(&vm, CpuTemplate::Host, &[]);
        let indices = msrs::settable(&vcpu, &msrs::listed(&kvm, CpuTemplate::Host).unwrap());
        // An entrance alone changes which of the extended state counts as in use.
        bring_in(&mut vcpu);
        assert_restores(
            &mut vcpu,
            |vcpu| read(vcpu, &shape, &indices),
            |vcpu| change(vcpu, &shape),
            |vcpu, state| {
                let shape = &shape;
                let parts = Parts::ALL;
                let mut to = Setting {
                    vcpu,
                    shape,
                    state,
                    parts,
                    alone: true,
                    at_entrance: *at_entrance,
                };
                vcpu::restore(&mut to).unwrap();
                bring_in(vcpu);
            },
        );
    }
}

#[test]
fn registers_that_kvm_refuses_are_an_error_at_the_entrance_and_when_they_are_brought_in() {
    let mut vcpu = machine().vcpu;
    let mut sregs = vcpu.get_sregs().unwrap();
    // Paging without protection (Intel SDM volume 3, 2.5).
    sregs.cr0 = 1 << 31;
    run_page::leave_sregs(&mut vcpu, sregs);
    assert!(run_page::bring_in(&mut vcpu).is_err());
    assert_eq!(vcpu.run().unwrap_err().errno(), libc::EINVAL);
    run_page::clear(&mut vcpu);
    run_page::bring_in(&mut vcpu).unwrap();
}

/// The order in which the run page is taken leaves the MSRs before the system registers.
#[test]
fn no_msr_of_a_snapshot_is_a_part_of_the_system_registers() {
    /// APIC base, EFER, and the bases of FS and GS.
    const PARTS: [u32; 4] = [0x1b, 0xc000_0080, 0xc000_0100, 0xc000_0101];
    let listed = msrs::listed(&machine().kvm, CpuTemplate::Host).unwrap();
    assert!(PARTS.iter().all(|index| !listed.contains(index)));
}

#[test]
fn each_interrupt_controller_restores() {
    let change = |part: usize, vm: &VmFd| {
        let mut state = chips::capture(vm).unwrap();
        match part {
            // The mask of each; an entry of the redirection table.
            0 => state.pic_master[2] ^= 0xff,
            1 => state.pic_slave[2] ^= 0xff,
            _ => state.ioapic[24 + 5 * 8] = 0x31,
        }
        chips::restore(vm, &state, Parts::ALL).unwrap();
    };
    for part in 0..3 {
        assert_restores(
            &mut machine().vm,
            |vm| chips::capture(vm).unwrap(),
            |vm| change(part, vm),
            |vm, state| chips::restore(vm, state, Parts::ALL).unwrap(),
        );
    }
}

#[test]
fn a_processors_time_restores() {
    let at = HostInstant::now();
    assert_restores(
        &mut machine().vcpu,
        |vcpu| clock::read_vcpu(vcpu, at).unwrap(),
        |vcpu| {
            let other = VcpuTimeV1 {
                tsc: 1 << 40,
                deadline: 0,
            };
            clock::start_vcpu(vcpu, &other, at).unwrap();
        },
        |vcpu, state| clock::start_vcpu(vcpu, state, at).unwrap(),
    );
}

#[test]
fn the_machines_clock_goes_on_from_what_it_is_set_to() {
    let Machine { vm, .. } = machine();
    let (then, _) = clock::read(&vm).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let (later, _) = clock::read(&vm).unwrap();
    assert!(later.kvmclock_ns > then.kvmclock_ns);
    // An hour away, so that the time this test takes does not matter.
    let mut state = later.clone();
    state.kvmclock_ns += 3_600_000_000_000;
    for state in [state, then] {
        clock::start(&vm, &state).unwrap();
        let (now, _) = clock::read(&vm).unwrap();
        let passed = now.kvmclock_ns.checked_sub(state.kvmclock_ns);
        assert!(passed.is_some_and(|ns| ns < 60_000_000_000), "{passed:?}");
    }
}

/// Registers that KVM lists as state and that no snapshot of a guest of the host's own
/// processor holds, each with its reason.
const LEFT_OUT: [(std::ops::RangeInclusive<u32>, &str); 3] = [
    (0x10..=0x10, "the counter: set by its offset at the start"),
    (0x6e0..=0x6e0, "the deadline: a part of its own"),
    (
        0x4000_0000..=0x4000_ffff,
        "Hyper-V: out of every guest's reach",
    ),
];

#[test]
fn every_register_that_kvm_lists_is_in_a_snapshot_or_left_out_for_a_reason() {
    let Machine { kvm, vcpu, .. } = machine();
    let all = kvm.get_msr_index_list().unwrap();
    let listed = msrs::listed(&kvm, CpuTemplate::Host).unwrap();
    let kept = msrs::settable(&vcpu, &listed);
    println!(
        "{} of {} MSRs are kept: {kept:x?}",
        kept.len(),
        all.as_slice().len()
    );
    for index in all.as_slice() {
        let reason = LEFT_OUT.iter().find(|(range, _)| range.contains(index));
        match reason {
            Some((_, why)) => assert!(!kept.contains(index), "{index:#x}: {why}"),
            // This processor lacks it, so a guest of it does, too.
            None if !kept.contains(index) => assert!(
                msrs::read(&vcpu, &[*index]).is_err() || !can_write(&vcpu, *index),
                "{index:#x} can be changed and is in no snapshot"
            ),
            None => {}
        }
    }
}

/// Whether a register takes another value than it has, from the host's side, which may do
/// all that a guest may.
fn can_write(vcpu: &VcpuFd, index: u32) -> bool {
    let [(_, now)] = msrs::read(vcpu, &[index]).unwrap()[..] else {
        return false;
    };
    (0..64).any(|bit| {
        let other = now ^ 1 << bit;
        msrs::write(vcpu, &[(index, other)]).is_ok()
            && msrs::read(vcpu, &[index]).unwrap() == [(index, other)]
    })
}

#[test]
fn the_whole_extended_state_of_the_processor_is_kept() {
    let Machine { vm, vcpu, kvm } = machine();
    let shape = Shape::of(&vm, CpuTemplate::Host, &[]);
    let kept = shape.read_xsave(&vcpu).unwrap().len();
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    // Each component: its size and where it lies (Intel SDM volume 1, 13.2).
    let components = cpuid.as_slice().iter().filter(|leaf| leaf.function == 0xd);
    for leaf in components.filter(|leaf| leaf.index >= 2 && leaf.ecx & 1 == 0) {
        let end = usize::try_from(leaf.eax + leaf.ebx).unwrap();
        assert!(end <= kept, "component {}: {end} of {kept}", leaf.index);
    }
}
