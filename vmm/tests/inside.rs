//! What a guest finds of its machine: each device is checked from inside, after the
//! boot, after a restore and after a reset. The checks are in `harness/checks.py`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;

use harness::{Cache, Shape, boot_root, execute, restored_from};

const CHECKS: &str = include_str!("harness/checks.py");

/// Checks that must be there: one that vanishes is not missed otherwise.
const EXPECTED: [&str; 13] = [
    "acpi_tables",
    "clocks",
    "device_interrupts",
    "disks",
    "entropy",
    "generation",
    "local_apics",
    "panic_notifier",
    "processors",
    "serial",
    "sockets",
    "vsock_data",
    "watchdog",
];

/// Runs all checks in a guest that began `wakes` times from a snapshot.
fn check(channel: &UnixStream, shape: Shape, disks: &[serde_json::Value], wakes: u32) {
    let machine = serde_json::json!({
        "vcpus": shape.vcpus,
        "virtio": disks.len() + 2,
        "disks": disks,
        "wakes": wakes,
    });
    // As text in text: Python reads JSON.
    let machine = serde_json::to_string(&machine.to_string()).unwrap();
    let answer = execute(
        channel,
        &format!("{CHECKS}\nanswer = run_checks(json.loads({machine}))"),
    );
    let mut found: BTreeMap<String, String> =
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer}"));
    found.insert("vsock_data".to_owned(), vsock_data(channel));
    let failed: Vec<_> = found.iter().filter(|(_, how)| *how != "ok").collect();
    assert!(failed.is_empty(), "{shape:?}, life {wakes}: {failed:#?}");
    assert_eq!(found.keys().collect::<Vec<_>>(), EXPECTED);
}

/// A message of more than one packet and buffer, both ways.
fn vsock_data(channel: &UnixStream) -> String {
    let text: String = (0..40_000).map(|n| format!("{n:06}")).collect();
    let answer = execute(channel, &format!("answer = '{text}'[::-1]"));
    let expected: String = text.chars().rev().collect();
    if answer == expected {
        "ok".to_owned()
    } else {
        format!("{} characters came back", answer.len())
    }
}

fn check_lives(shape: Shape) {
    let booted = boot_root(shape);
    let disks = booted.disks();
    check(&booted.channel, shape, &disks, 0);
    booted.console.wait_for("serial line, life 0");
    let snapshot = booted.snapshot();
    let machine = restored_from(&snapshot, Cache::Cold);
    check(&machine.run(), shape, &disks, 1);
    machine.console.wait_for("serial line, life 1");
    for _ in 0..2 {
        machine.reset();
        assert_eq!(machine.differences(), Vec::<String>::new());
        check(&machine.run(), shape, &disks, 1);
    }
}

#[test]
fn every_device_works_in_each_life_of_a_guest() {
    for vcpus in [1, 8] {
        check_lives(Shape {
            vcpus,
            ..Shape::SMALL
        });
    }
}
