//! The ways in which a guest ends by its own doing, each seen as what it is.

#![allow(clippy::panic, reason = "helpers of tests count as code outside tests")]

mod harness;

use std::sync::OnceLock;

use harness::{Cache, Shape, Snapshot, TestMachine, boot_root, restored_from, send_code};
use snapback_proto::control::{Command, Event, Reply, StopReason, VmmMessage};

/// A guest that does what the test says.
fn guest() -> TestMachine {
    static SNAPSHOT: OnceLock<Snapshot> = OnceLock::new();
    let shape = Shape {
        vcpus: 2,
        ..Shape::SMALL
    };
    let snapshot = SNAPSHOT.get_or_init(|| boot_root(shape).snapshot());
    restored_from(snapshot, Cache::Warm)
}

/// Executes `code` in a fresh guest and waits for the guest's end.
fn end_of(code: &str) -> (TestMachine, StopReason) {
    let machine = guest();
    let channel = machine.run();
    send_code(&channel, code);
    match machine.vmm.message() {
        (VmmMessage::Event(Event::Stopped(reason)), _) => (machine, reason),
        (other, _) => panic!("{other:?} after {code}"),
    }
}

#[test]
fn a_guest_that_powers_off_has_powered_off() {
    let (machine, reason) = end_of("libc.reboot(0x4321fedc)");
    assert_eq!(reason, StopReason::PoweredOff);
    // It is over: nothing can be done with the machine any more.
    let (reply, _) = machine.vmm.ask(&Command::RESET, &[]);
    assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
}

#[test]
fn a_guest_that_reboots_has_rebooted_by_whatever_way() {
    for way in ["acpi", "kbd", "triple"] {
        let code = format!(
            "open('/sys/kernel/reboot/type', 'w').write('{way}')
open('/sys/kernel/reboot/force', 'w').write('1')
libc.reboot(0x1234567)"
        );
        let (_, reason) = end_of(&code);
        assert_eq!(reason, StopReason::Rebooted, "{way}");
    }
}

#[test]
fn a_guest_whose_kernel_panics_has_panicked_and_says_why() {
    // The kernel's own timeout is to reboot at once.
    let timeout = "assert open('/proc/sys/kernel/panic').read() == '-1\\n'; ";
    let (machine, reason) = end_of(&format!("{timeout}os._exit(3)"));
    assert_eq!(reason, StopReason::Panicked);
    let why = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000300";
    machine.console.wait_for(why);
}

#[test]
fn an_end_during_a_reset_is_reported_before_the_resets_failure() {
    let machine = guest();
    let channel = machine.run();
    send_code(&channel, "os._exit(3)");
    machine.console.wait_for("Kernel panic");
    // The text comes before the end itself: a guest that is stopped in between did not
    // end. When the end is seen before the command comes, the order is the same.
    std::thread::sleep(std::time::Duration::from_secs(2));
    snapback_proto::control::send(&machine.vmm.socket, &Command::RESET, &[]).unwrap();
    let ended = VmmMessage::Event(Event::Stopped(StopReason::Panicked));
    assert_eq!(machine.vmm.message().0, ended);
    let (reply, _) = machine.vmm.message();
    assert!(
        matches!(reply, VmmMessage::Reply(Reply::Failed(_))),
        "{reply:?}"
    );
}
