//! Machines of one snapshot share their past, and neither their randomness nor their clocks.

use std::collections::HashSet;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::harness::agent::Agent;
use crate::harness::{NO_BLANKS, TOUR, own_place, shared};

fn draw(agent: &Agent, seconds: u32) -> Value {
    agent.call(TOUR, &json!({"do": "draw", "seconds": seconds}))
}

/// Checks that all have drawn different numbers, in machines of one snapshot.
fn differ(drawn: &[Value]) {
    for kind in [
        "ec_key",
        "random",
        "ssl",
        "secrets",
        "urandom",
        "uuid4",
        "uuid1",
        "hostname",
        "machine_id",
        "boot_id",
    ] {
        assert!(drawn.iter().all(|one| !one[kind].is_null()), "{kind}");
        let different: HashSet<_> = drawn.iter().map(|one| one[kind].to_string()).collect();
        assert_eq!(different.len(), drawn.len(), "{kind}: {drawn:?}");
    }
    // Every byte that a TLS client's first message draws.
    for kind in ["random", "session"] {
        let hello = |one: &Value| one["tls_hello"][kind].as_str().unwrap().to_owned();
        assert!(drawn.iter().all(|one| hello(one).len() == 64), "{drawn:?}");
        let different: HashSet<_> = drawn.iter().map(hello).collect();
        assert_eq!(different.len(), drawn.len(), "TLS {kind}: {drawn:?}");
    }
    assert!(
        drawn.iter().all(|one| one["born"] == drawn[0]["born"]),
        "{drawn:?}"
    );
}

fn host_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

#[test]
fn two_machines_restored_at_the_same_moment_draw_different_random_numbers() {
    let (place, _turn) = own_place();
    let agent = place.start(NO_BLANKS);
    let mut drawn = thread::scope(|scope| {
        let requests: Vec<_> = (0..2).map(|_| scope.spawn(|| draw(&agent, 3))).collect();
        // Neither is over before the other has begun.
        agent.wait_for_busy(2);
        requests
            .into_iter()
            .map(|request| request.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert_eq!(agent.machines().len(), 2);
    // Nor does either draw them again after its reset.
    drawn.push(draw(&agent, 0));
    differ(&drawn);
}

#[test]
fn a_machine_draws_different_random_numbers_after_every_reset() {
    let agent = shared();
    let drawn: Vec<_> = (0..5).map(|_| draw(&agent, 0)).collect();
    differ(&drawn);
}

#[test]
fn the_first_instruction_of_a_handler_sees_the_hosts_wall_clock() {
    let agent = shared();
    // What the guest says is the time must be the host's time at some moment of the request,
    // or be off by less than this.
    const SLACK: f64 = 0.05;
    for _ in 0..5 {
        let before = host_seconds();
        let (facts, record) = agent.call_recorded(TOUR, &json!({"do": "draw"}));
        let after = host_seconds();
        // It was set between `Run` and the guest's confirmation, and lags by less than that
        // took: a figure where instructions are counted.
        let resume = record["resume_ns"].as_f64().unwrap() / 1e9;
        println!(
            "the guest confirmed its clock {:.3} ms after Run",
            resume * 1e3
        );
        let guest = facts["now"]["wall"].as_f64().unwrap();
        assert!(
            (before - SLACK..after + SLACK).contains(&guest),
            "{before} {guest} {after}"
        );
        // The snapshot's own time is long past.
        assert!(
            facts["born"]["wall"].as_f64().unwrap() < before - 1.0,
            "{facts}"
        );
    }
}

#[test]
fn monotonic_time_goes_on_from_the_snapshot_in_every_request() {
    let agent = shared();
    let function = agent.function(TOUR);
    let seconds = |value: &Value| value.as_f64().unwrap() / 1e9;
    // From the function's birth, which is within its initialisation, to the ready point.
    let until_snapshot = seconds(&function["build"]["init_ns"]);
    for _ in 0..5 {
        let (drawn, record) = agent.call_recorded(TOUR, &json!({"do": "draw"}));
        let since = |clock: &str| {
            let (now, born) = (&drawn["now"][clock], &drawn["born"][clock]);
            now.as_f64().unwrap() - born.as_f64().unwrap()
        };
        // Time passes while the guest runs, and only then: not between the snapshot and now,
        // and not in the requests before this one.
        let may_pass = until_snapshot + seconds(&record["total_ns"]);
        let passed = since("monotonic");
        assert!(passed > 0.0 && passed < may_pass, "{passed} {may_pass}");
        assert!(since("wall") > passed, "{drawn}");
    }
}
