//! A real Python function in a real guest: restored, run, reset, compared.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::{
    Cache, Shape, Vmm, boot_and_snapshot, restore_command, restored, restored_from, snapshot,
    stream_pair,
};
use snapback_proto::CONTROL_VERSION;
use snapback_proto::control::{Command, Devices, Machine, Reply, Run, VmmMessage};
use snapback_proto::cpu::CpuTemplate;
use snapback_vmm::supervisor::Saved;

#[test]
fn every_request_after_a_reset_is_the_first_one() {
    let mut machine = restored(Cache::Warm);
    for round in 0..5 {
        let answer = machine.request(r#"{"bytes": 3, "dirty": 100}"#);
        assert_eq!(answer, r#"{"calls": 1, "trace": 3}"#, "round {round}");
        let report = machine.reset();
        assert!(report.pages >= 100, "{report:?}");
        assert!(report.pages_by_devices > 0, "{report:?}");
        println!("{report:?}");
    }
    assert_eq!(machine.faults.load(Ordering::Relaxed), 0);
}

#[test]
fn a_reset_machine_equals_its_snapshot() {
    let mut machine = restored(Cache::Warm);
    assert_eq!(
        machine.differences(),
        Vec::<String>::new(),
        "after the restore"
    );
    for _ in 0..3 {
        machine.request(r#"{"dirty": 500}"#);
        machine.reset();
        assert_eq!(machine.differences(), Vec::<String>::new(), "after a reset");
    }
}

#[test]
fn a_cold_restore_pages_in_what_it_needs() {
    let mut machine = restored(Cache::Cold);
    assert_eq!(machine.request("{}"), r#"{"calls": 1, "trace": 1}"#);
    let faults = machine.faults.load(Ordering::Relaxed);
    assert!(
        (1..20_000).contains(&faults),
        "{faults} pages of 32768 were faulted in"
    );
    machine.reset();
    assert_eq!(machine.request("{}"), r#"{"calls": 1, "trace": 1}"#);
}

#[test]
fn a_reset_right_behind_a_run_is_answered_after_it() {
    let machine = restored(Cache::Warm);
    for _ in 0..3 {
        let (_channel, theirs) = stream_pair();
        machine.vmm.tell(&Command::Run(Run::default()), &[&theirs]);
        machine.vmm.tell(&Command::RESET, &[]);
        let (first, _) = machine.vmm.message();
        let entered = matches!(first, VmmMessage::Reply(Reply::Running { .. }));
        assert!(entered, "{first:?}");
        let (second, _) = machine.vmm.message();
        let was_reset = matches!(second, VmmMessage::Reply(Reply::Reset(_)));
        assert!(was_reset, "{second:?}");
        assert_eq!(machine.differences(), Vec::<String>::new());
    }
}

#[test]
fn a_reset_in_the_middle_of_a_request_is_complete() {
    let mut machine = restored(Cache::Warm);
    let channel = machine.resume();
    machine.reset();
    drop(channel);
    assert_eq!(machine.differences(), Vec::<String>::new());
    assert_eq!(machine.request("{}"), r#"{"calls": 1, "trace": 1}"#);
}

/// What feeds the kernel's generator, and how often the fourth virtio device has
/// interrupted.
const RNG: &str = r#"[
    open("/sys/class/misc/hw_random/rng_current").read(),
    [int(line.split()[1]) > 0 for line in open("/proc/interrupts") if "virtio3" in line],
]"#;

#[test]
fn the_guest_has_a_source_of_entropy() {
    let mut machine = restored(Cache::Warm);
    for _ in 0..2 {
        assert_eq!(machine.look(RNG), r"['virtio_rng.0\n', [True]]");
        machine.reset();
        assert_eq!(machine.differences(), Vec::<String>::new());
    }
}

/// Goes from processor to processor and reads the time stamp counter on each (the
/// code is `rdtsc; shl rdx, 32; or rax, rdx; ret`): which processors it was on, and how
/// often the counter went back.
const PROCESSORS: &str = r#"(lambda os, mmap, ctypes: [
    page := mmap.mmap(-1, 4096, prot=7),
    page.write(bytes.fromhex("0f3148c1e2204809d0c3")),
    tsc := ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page))),
    all := sorted(os.sched_getaffinity(0)),
    seen := [[os.sched_setaffinity(0, [cpu]), tsc()][1] for _ in range(10) for cpu in all],
    os.sched_setaffinity(0, all),
    [all, sum(b <= a for a, b in zip(seen, seen[1:]))],
][-1])(__import__("os"), __import__("mmap"), __import__("ctypes"))"#;

/// Package, core and siblings of each processor, as the guest's kernel sees them.
const TOPOLOGY: &str = r#"(lambda read: [
    [read(cpu, name) for name in ("physical_package_id", "core_id", "thread_siblings_list")]
    for cpu in range(__import__("os").cpu_count())
])(lambda cpu, name: int(open(f"/sys/devices/system/cpu/cpu{cpu}/topology/{name}").read()))"#;

/// How many pages the kernel found above 4 GiB.
const HIGH_PAGES: &str = r#"[
    zone.split("present")[1].split()[0]
    for zone in open("/proc/zoneinfo").read().split("Node 0, zone")[1:]
    if zone.split()[0] == "Normal"
]"#;

/// Boots a machine, and restores, runs, resets and compares it.
fn check_shape(vcpus: u8, memory_mib: u32) {
    let shape = Shape {
        memory_mib,
        vcpus,
        ..Shape::SMALL
    };
    let snapshot = boot_and_snapshot(shape);
    let saved = Saved::load(&snapshot.state).unwrap();
    let times: Vec<u64> = saved.processors.iter().map(|cpu| cpu.time.tsc).collect();
    assert_eq!(times, vec![times[0]; usize::from(vcpus)], "one instant");
    let mut machine = restored_from(&snapshot, Cache::Cold);
    assert_eq!(machine.differences(), Vec::<String>::new(), "{shape:?}");
    let cores: Vec<_> = (0..vcpus).map(|cpu| [0, cpu, cpu]).collect();
    assert_eq!(machine.look(TOPOLOGY), format!("{cores:?}"), "one package");
    machine.reset();
    let above = u64::from(memory_mib.saturating_sub(3072)) * 256;
    assert_eq!(machine.look(HIGH_PAGES), format!("['{above}']"));
    machine.reset();
    for round in 0..2 {
        let all: Vec<_> = (0..vcpus).collect();
        let expected = format!("[{all:?}, 0]");
        assert_eq!(machine.look(PROCESSORS), expected, "{shape:?}: {round}");
        println!("{shape:?}: {:?}", machine.reset());
        assert_eq!(machine.differences(), Vec::<String>::new(), "{shape:?}");
        let answer = machine.request(r#"{"bytes": 3, "dirty": 1000}"#);
        assert_eq!(answer, r#"{"calls": 1, "trace": 3}"#);
        machine.reset();
    }
}

#[test]
fn machines_of_several_vcpus_are_restored_and_reset_as_one() {
    // One, four and eight are below, with other amounts of memory.
    for vcpus in [2, 3, 5, 6, 7] {
        check_shape(vcpus, 128);
    }
}

#[test]
fn memory_ends_below_at_and_above_the_devices_hole() {
    for (vcpus, memory_mib) in [(1, 3071), (4, 3072), (1, 3073)] {
        check_shape(vcpus, memory_mib);
    }
}

#[test]
fn the_smallest_and_the_largest_machine_are_restored_and_reset() {
    check_shape(1, 64);
    check_shape(8, 16 * 1024);
}

#[test]
fn shapes_out_of_range_are_refused_by_what_is_allowed() {
    for (memory_mib, vcpus, allowed) in [
        (63, 1, "64 to 16384"),
        (16385, 1, "64 to 16384"),
        (128, 0, "1 to 8"),
        (128, 9, "1 to 8"),
    ] {
        let machine = Machine {
            control_version: CONTROL_VERSION,
            memory_mib,
            vcpus,
            template: CpuTemplate::Host,
            disks: 2,
            net: false,
        };
        match Vmm::start().ask(&Command::Prepare(machine), &[]).0 {
            Reply::Failed(failure) => assert!(failure.reason.contains(allowed), "{failure:?}"),
            other => panic!("{memory_mib} MiB, {vcpus} vCPUs: {other:?}"),
        }
    }
}

#[test]
fn a_reset_in_the_middle_of_an_interrupt_is_complete() {
    let snapshot = boot_and_snapshot(Shape {
        vcpus: 4,
        ..Shape::SMALL
    });
    let mut machine = restored_from(&snapshot, Cache::Warm);
    // A guest that does little else than interrupt its own processors.
    let event = r#"{"look": "any(__import__('os').sched_setaffinity(0, [i % 4])
        for i in __import__('itertools').count())"}"#
        .replace('\n', " ");
    // Processors that the host takes away are stopped anywhere, handlers included.
    let done = Arc::new(AtomicBool::new(false));
    for _ in 0..3 {
        let done = Arc::clone(&done);
        std::thread::spawn(move || while !done.load(Ordering::Relaxed) {});
    }
    for round in 0..10 {
        let channel = machine.begin(&event);
        std::thread::sleep(std::time::Duration::from_millis(200 + 7 * round));
        machine.reset();
        drop(channel);
        assert_eq!(machine.differences(), Vec::<String>::new(), "{round}");
    }
    done.store(true, Ordering::Relaxed);
}

#[test]
fn a_damaged_state_is_refused_by_the_name_of_its_section() {
    let snapshot = snapshot();
    let length = snapshot.state.metadata().unwrap().len();
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    snapshot.state.read_exact_at(&mut bytes, 0).unwrap();
    let half = bytes.len() / 2;
    for (what, damaged) in [
        ("cut in half", bytes[..half].to_vec()),
        ("one bit changed", {
            let mut copy = bytes.clone();
            copy[half] ^= 1;
            copy
        }),
    ] {
        let vmm = Vmm::start();
        vmm.prepare(snapshot.shape);
        let file: File = tempfile::tempfile().unwrap();
        file.write_all_at(&damaged, 0).unwrap();
        match restore_command(&vmm, snapshot, &snapshot.memory, &file).0 {
            Reply::Failed(failure) => {
                assert_eq!(
                    failure.section.as_deref(),
                    Some("processor"),
                    "{what}: {failure:?}"
                );
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn commands_out_of_order_end_the_machine() {
    let vmm = Vmm::start();
    let (reply, _) = vmm.ask(&Command::RESET, &[]);
    assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    let (reply, _) = vmm.ask(&Command::Verify, &[]);
    assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
}

#[test]
fn the_process_ends_with_its_control_socket_even_while_a_fault_is_unanswered() {
    let snapshot = snapshot();
    let mut vmm = Vmm::start();
    // Nobody answers this machine's page faults.
    let (_uffd, _) = vmm.prepare(snapshot.shape);
    let empty = snapback_vmm::sys::memfd::create("empty", snapshot.shape.memory()).unwrap();
    let disks = &snapshot.disks;
    let (_, serial) = std::io::pipe().unwrap();
    let fds: [&dyn std::os::fd::AsFd; 5] = [&empty, &snapshot.state, &serial, &disks[0], &disks[1]];
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let restore = Command::Restore {
        devices: Devices::read_only_disks(2),
        lazy: true,
        written: Vec::new(),
        whole: None,
        run: None,
    };
    snapback_proto::control::send(&vmm.socket, &restore, &fds).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let (ours, _) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut vmm.socket, ours.into()));
    vmm.wait();
}
