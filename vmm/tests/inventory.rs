//! Every line of the inventory: a hostile guest changes what it names, a reset puts it
//! back and `verify` finds nothing; a reset that leaves the line out is found out, by
//! the name of the line.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;
#[path = "tiny/hostile.rs"]
mod hostile;
mod tiny;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use harness::{Shape, Vmm};
use hostile::Hostile;
use kvm_ioctls::Kvm;
use snapback_proto::cpu::CpuTemplate;
use snapback_vmm::arch::x86_64::msrs;
use snapback_vmm::reset::inventory::{How, INVENTORY, Part};
use tiny::Running;

const SHAPE: Shape = Shape {
    memory_mib: 64,
    ..Shape::SMALL
};

/// Registers that KVM has, may not list as state, and would let a guest write: MTRRs,
/// banks of machine checks, DEBUGCTL, OSVW of AMD.
const HIDDEN: [std::ops::RangeInclusive<u32>; 7] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x268..=0x26f,
    0x2ff..=0x2ff,
    0x400..=0x47f,
    0x1d9..=0x1d9,
    0xc001_0140..=0xc001_0141,
];

fn hostile_snapshot(apic_off: bool) -> (OwnedFd, File) {
    let listed = msrs::listed(&Kvm::new().unwrap(), CpuTemplate::Host).unwrap();
    let hidden = HIDDEN.into_iter().flatten();
    let hidden = hidden.filter(|index| !listed.contains(index)).collect();
    let hostile = Hostile {
        msrs: listed,
        hidden,
        apic_off,
    };
    Running::boot(SHAPE, &hostile.parts()).snapshot()
}

/// A VMM whose reset leaves the part at this place out.
fn mutant(place: usize) -> Vmm {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_snapback-vmm"));
    let program = program.with_file_name("examples").join("mutant");
    Vmm::start_program(Command::new(program).arg(place.to_string()))
}

#[test]
fn what_a_hostile_guest_changes_is_put_back_bit_for_bit() {
    // Its registers are set at its entrance, or at once because its local APIC is in another
    // mode.
    for apic_off in [false, true] {
        let (memory, state) = hostile_snapshot(apic_off);
        let mut running = Running::restore(SHAPE, memory, &state);
        for life in 0..5 {
            assert_eq!(running.wake(), "kh\n", "life {life}");
            running.vmm.reset();
            // What was never looked at goes into the next life as well.
            if life % 2 == 0 {
                let found = running.vmm.differences();
                assert_eq!(found, Vec::<String>::new(), "life {life}");
            }
        }
    }
}

/// What a hostile guest of this shape cannot change by itself, or what is not compared
/// while the guest stands still; each has a test of its own.
const ELSEWHERE: [Part; 8] = [
    // The box's emulator executes XSETBV without asking KVM: tests/state.rs changes
    // XCR0 from the host's side.
    Part::ExtendedControl,
    // It is a matter of luck whether one is left at the instant of the stop.
    Part::Notifications,
    // This machine has neither: tests/net.rs, tests/disks.rs.
    Part::Net,
    Part::Disks,
    // Given at the start.
    Part::Frames,
    Part::GenerationId,
    Part::Clock,
    Part::Counters,
];

/// What `verify` finds after a life that ended with a reset which left out the part at
/// this place.
fn found_without(place: usize, memory: &OwnedFd, state: &File) -> Vec<String> {
    let memory = memory.try_clone().unwrap();
    let mut running = Running::restore_in(mutant(place), SHAPE, memory, state);
    assert_eq!(running.wake(), "kh\n");
    // It has said so right before it halts.
    std::thread::sleep(Duration::from_millis(50));
    running.vmm.reset();
    running.vmm.differences()
}

#[test]
fn a_reset_that_leaves_a_part_out_is_found_out() {
    /// How often a guest is let go whose thread may not have come to its last
    /// instruction in time.
    const TRIES: u32 = 5;
    let (memory, state) = hostile_snapshot(false);
    for (place, entry) in INVENTORY.iter().enumerate() {
        if ELSEWHERE.contains(&entry.part) {
            continue;
        }
        let begin = match entry.how {
            How::Vcpu(_) => format!("vCPU 0, {}: ", entry.name),
            How::Memory => "memory page at ".to_owned(),
            _ => format!("{}: ", entry.name),
        };
        let caught = (0..TRIES).any(|_| {
            let found = found_without(place, &memory, &state);
            println!("{}: {found:.300?}", entry.name);
            found.iter().any(|what| what.starts_with(&begin))
        });
        assert!(caught, "nobody misses: {}", entry.name);
    }
}
