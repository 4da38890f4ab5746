//! Requests at once run apart from one another; beyond what is allowed they are refused, and
//! nobody hangs.

use std::collections::HashSet;
use std::thread;
use std::time::Instant;

use serde_json::json;

use crate::harness::agent::Agent;
use crate::harness::http::Response;
use crate::harness::{NO_BLANKS, TOUR, own_place, shared, wait_for};

/// Checks that a request was throttled as Lambda throttles.
fn throttled(response: &Response) {
    assert_eq!(response.status, 429, "{response:?}");
    assert_eq!(
        response.header("x-amzn-errortype"),
        "TooManyRequestsException"
    );
    assert_eq!(
        response.json()["Reason"],
        "ConcurrentInvocationLimitExceeded"
    );
}

fn nap(agent: &Agent, seconds: u32) -> Response {
    agent.invoke(TOUR, &json!({"do": "nap", "seconds": seconds}))
}

#[test]
fn two_requests_at_once_run_in_two_microvms() {
    let agent = shared();
    let agent: &Agent = &agent;
    let answers = thread::scope(|scope| {
        let running: Vec<_> = (0..2).map(|_| scope.spawn(|| nap(agent, 3))).collect();
        agent.wait_for_busy(2);
        assert!(agent.machines().len() >= 2);
        running
            .into_iter()
            .map(|request| request.join().unwrap())
            .collect::<Vec<_>>()
    });
    let environments: HashSet<_> = answers
        .iter()
        .map(|answer| {
            assert_eq!(answer.status, 200, "{answer:?}");
            agent.record(answer)["environment"].to_string()
        })
        .collect();
    assert_eq!(environments.len(), 2);
}

#[test]
fn a_request_that_no_environment_is_left_for_is_throttled_at_once() {
    let (place, _turn) = own_place();
    let agent = place.start("[limits]\nmax_environments = 1\n");
    thread::scope(|scope| {
        let running = scope.spawn(|| nap(&agent, 4));
        agent.wait_for_busy(1);
        throttled(&nap(&agent, 4));
        let run = agent.cli_invoke(TOUR, b"{}");
        run.refuses("TooManyRequestsException");
        assert!(!running.is_finished(), "the refusal came late");
        assert_eq!(running.join().unwrap().status, 200);
    });
    assert_eq!(agent.machines().len(), 1);
    assert_eq!(nap(&agent, 0).status, 200);
}

#[test]
fn a_full_queue_throttles_and_whoever_is_in_it_is_served() {
    let (place, _turn) = own_place();
    let limits = "[limits]\nmax_concurrent_requests = 1\nmax_queued_requests = 1\n";
    let agent = place.start(&format!("{limits}{NO_BLANKS}"));
    thread::scope(|scope| {
        let running = scope.spawn(|| nap(&agent, 4));
        agent.wait_for_busy(1);
        // One of the two waits, the other is sent away, whichever comes first.
        let rivals: Vec<_> = (0..2).map(|_| scope.spawn(|| nap(&agent, 0))).collect();
        let rivals: Vec<_> = rivals
            .into_iter()
            .map(|rival| rival.join().unwrap())
            .collect();
        assert_eq!(running.join().unwrap().status, 200);
        let (served, refused): (Vec<_>, Vec<_>) =
            rivals.iter().partition(|response| response.status == 200);
        assert_eq!((served.len(), refused.len()), (1, 1), "{rivals:?}");
        throttled(refused[0]);
        // It waited for the one before, and never beside it.
        let record = agent.record(served[0]);
        assert!(record["queue_ns"].as_u64().unwrap() > 0, "{record}");
    });
    assert_eq!(agent.machines().len(), 1);
}

#[test]
fn a_request_waits_no_longer_than_it_may() {
    let (place, _turn) = own_place();
    let limits = "[limits]\nmax_concurrent_requests = 1\n[timeouts]\nqueue_ms = 1500\n";
    let agent = place.start(limits);
    // A restore counts as waiting, and may take longer than that where a machine is emulated.
    wait_for("an environment", || {
        (nap(&agent, 0).status == 200).then_some(())
    });
    thread::scope(|scope| {
        // Itself refused where its environment takes that long.
        let running = scope.spawn(|| {
            wait_for("a place", || {
                Some(nap(&agent, 6)).filter(|answer| answer.status != 429)
            })
        });
        agent.wait_for_busy(1);
        let start = Instant::now();
        throttled(&nap(&agent, 0));
        assert!(start.elapsed().as_millis() >= 1500);
        assert!(!running.is_finished(), "the refusal came late");
        assert_eq!(running.join().unwrap().status, 200);
    });
}
