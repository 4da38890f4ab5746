//! A real Python function in a real guest: restored, run, reset, compared.

mod harness;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use harness::{Cache, Vmm, restore_command, restored, snapshot};
use snapback_proto::control::{Command, Reply};

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
fn a_reset_in_the_middle_of_a_request_is_complete() {
    let mut machine = restored(Cache::Warm);
    let channel = machine.resume();
    machine.reset();
    drop(channel);
    assert_eq!(machine.differences(), Vec::<String>::new());
    assert_eq!(machine.request("{}"), r#"{"calls": 1, "trace": 1}"#);
}

/// Looks until the kernel says that it reseeded its generator, for at most ten
/// seconds: how often it said so, and the interrupts of the generic event device.
const GENERATIONS: &str = r#"(lambda os, time, sub: [
    log := lambda: sub.run(["dmesg"], capture_output=True, text=True).stdout,
    next((1 for _ in range(100) if "virtual machine fork" in log() or time.sleep(0.1)), 0),
    log().count("reseeded due to virtual machine fork"),
    [line.split()[1] for line in open("/proc/interrupts") if "ACPI:Ged" in line],
][2:])(__import__("os"), __import__("time"), __import__("subprocess"))"#;

#[test]
fn every_life_of_a_snapshot_has_a_generation_of_its_own() {
    // One each: more would be left over from an earlier life, fewer a twin.
    let own = "[1, ['1']]";
    let mut first = restored(Cache::Warm);
    assert_eq!(first.look(GENERATIONS), own, "after the restore");
    first.reset();
    assert_eq!(first.differences(), Vec::<String>::new());
    assert_eq!(first.look(GENERATIONS), own, "after the reset");
    let mut second = restored(Cache::Cold);
    assert_eq!(second.look(GENERATIONS), own, "in another machine");
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
        vmm.prepare();
        let file: File = tempfile::tempfile().unwrap();
        file.write_all_at(&damaged, 0).unwrap();
        match restore_command(&vmm, &snapshot.memory, &file).0 {
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
    let (reply, _) = vmm.ask(&Command::Reset, &[]);
    assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    let (reply, _) = vmm.ask(&Command::Verify, &[]);
    assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
}

#[test]
fn the_process_ends_with_its_control_socket_even_while_a_fault_is_unanswered() {
    let snapshot = snapshot();
    let mut vmm = Vmm::start();
    // Nobody answers this machine's page faults.
    let (_uffd, _) = vmm.prepare();
    let empty = snapback_vmm::sys::memfd::create("empty", 128 << 20).unwrap();
    let disks = &snapshot.disks;
    let (_, serial) = std::io::pipe().unwrap();
    let fds: [&dyn std::os::fd::AsFd; 5] = [&empty, &snapshot.state, &serial, &disks[0], &disks[1]];
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    snapback_proto::control::send(&vmm.socket, &Command::Restore { disks: 2 }, &fds).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let (ours, _) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut vmm.socket, ours.into()));
    vmm.wait();
}
