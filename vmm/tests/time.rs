//! Guest time in many lives of one snapshot: it goes on from the snapshot's in each of
//! them, and what was to happen later happens then.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;

use harness::{Cache, Shape, Snapshot, TestMachine, boot_root, restored_from, result_of};
use serde_json::Value;
use snapback_vmm::supervisor::Saved;

/// Guest seconds from the timer's start to its end.
const DELAY: f64 = 5.0;
/// A timer is late at most so much, in guest seconds: the host is emulated and shared.
const LATE: f64 = 4.0;

/// A timer of the function's, which goes by the guest's monotonic clock, and one of the
/// kernel's own.
const ARM: &str = "import signal
armed, fired = time.monotonic(), None
def fire():
    global fired
    fired = time.monotonic() - armed
timer = threading.Timer(DELAY, fire)
timer.start()
alarmed = None
def alarm(*_):
    global alarmed
    alarmed = time.monotonic() - armed
signal.signal(signal.SIGALRM, alarm)
signal.setitimer(signal.ITIMER_REAL, DELAY)";

const LOOK: &str = "result = [time.monotonic() - armed, fired, alarmed]";

fn snapshot() -> Snapshot {
    let booted = boot_root(Shape::SMALL);
    result_of(&booted.channel, &ARM.replace("DELAY", &DELAY.to_string()));
    booted.snapshot()
}

/// What a kernel says when time is not what it should be, or a processor does not come
/// back.
fn assert_no_complaint(machine: &TestMachine) {
    let said = machine.console.text();
    for word in [
        "stall",
        "rcu",
        "lockup",
        "clocksource",
        "unstable",
        "Call Trace",
    ] {
        assert!(!said.contains(word), "{said}");
    }
}

#[test]
fn a_timer_armed_before_the_snapshot_fires_in_every_life_as_if_no_request_had_been() {
    let snapshot = snapshot();
    let machine = restored_from(&snapshot, Cache::Warm);
    let mut begins = Vec::new();
    for life in 0..6 {
        let guest = machine.run();
        let begin = result_of(&guest, LOOK);
        println!("life {life} begins at {begin}");
        assert_eq!(
            (&begin[1], &begin[2]),
            (&Value::Null, &Value::Null),
            "{life}"
        );
        begins.push(begin[0].as_f64().unwrap());
        match life % 3 {
            // As long as it takes.
            0 => {
                let end = result_of(
                    &guest,
                    "timer.join(60)
while alarmed is None: time.sleep(0.01)
result = [fired, alarmed]",
                );
                for at in [&end[0], &end[1]] {
                    let at = at.as_f64().unwrap();
                    assert!((DELAY..DELAY + LATE).contains(&at), "life {life}: {at}");
                }
            }
            // A request that takes them away, and has others.
            1 => {
                result_of(
                    &guest,
                    "timer.cancel()
signal.setitimer(signal.ITIMER_REAL, 0)
threading.Timer(0.2, fire).start()
time.sleep(0.3)",
                );
            }
            // One that is ended in the middle of another.
            _ => harness::begin(&guest, "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)"),
        }
        machine.reset();
        assert_eq!(machine.differences(), Vec::<String>::new(), "{life}");
    }
    // Some of these lives were longer than all that is left of the timer.
    let first = begins[0];
    let spread = begins.iter().map(|begin| (begin - first).abs());
    assert!(spread.fold(0.0, f64::max) < 1.0, "{begins:?}");
    assert_no_complaint(&machine);
}

#[test]
fn five_hundred_lives_leave_a_kernel_without_complaint() {
    let snapshot = snapshot();
    let machine = restored_from(&snapshot, Cache::Warm);
    for life in 0..500 {
        let guest = machine.run();
        let begin = result_of(&guest, LOOK)[0].as_f64().unwrap();
        assert!(begin < DELAY, "life {life} begins at {begin}");
        machine.reset();
        if life % 100 == 99 {
            assert_eq!(machine.differences(), Vec::<String>::new(), "{life}");
        }
    }
    assert_no_complaint(&machine);
}

/// The silence of the others only means something where a kernel would complain.
#[test]
fn a_kernel_whose_clock_jumps_while_it_is_busy_complains_of_a_soft_lockup() {
    /// Of which twice as many are a lockup; a stall of RCU is one after 21 seconds.
    const THRESHOLD: &str = "5";
    const JUMP_NS: u64 = 15_000_000_000;
    let booted = boot_root(Shape::SMALL);
    // A processor that goes to sleep is not suspected.
    let busy = "import subprocess
open('/proc/sys/kernel/watchdog_thresh', 'w').write('THRESHOLD')
result = subprocess.Popen(['/bin/sh', '-c', 'while :; do :; done']).pid";
    result_of(&booted.channel, &busy.replace("THRESHOLD", THRESHOLD));
    let mut snapshot = booted.snapshot();
    let mut saved = Saved::load(&snapshot.state).unwrap();
    saved.clock.kvmclock_ns += JUMP_NS;
    snapshot.state = tempfile::tempfile().unwrap();
    saved.store(&snapshot.state).unwrap();
    let machine = restored_from(&snapshot, Cache::Warm);
    let _guest = machine.run();
    machine.console.wait_for("soft lockup");
}
