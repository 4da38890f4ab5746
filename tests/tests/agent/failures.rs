//! What goes wrong is answered in Lambda's words, and is over with its request.

use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::agent::{Agent, invocations};
use crate::harness::http::{self, Response};
use crate::harness::{TOUR, shared, tour_code, wait_for};

const MAX_PAYLOAD: usize = 6 * 1024 * 1024;

/// A function whose requests may run for three seconds.
const IMPATIENT: &str = "impatient";

/// Checks that the API refused a request.
fn refused(response: &Response, status: u16, kind: &str) {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.header("x-amzn-errortype"), kind);
    assert_eq!(response.header("content-type"), "application/json");
    let error = response.json();
    assert!(!error["message"].as_str().unwrap().is_empty());
    assert_eq!(error["Type"], "User");
    // Every answer to an Invoke names its request.
    assert_eq!(response.request_id().len(), 36);
}

/// Checks that the function failed, and returns the error's JSON.
fn unhandled(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{response:?}");
    assert_eq!(response.header("x-amz-function-error"), "Unhandled");
    assert_eq!(response.header("content-type"), "application/json");
    response.json()
}

/// Checks that an agent's next request finds a whole environment; its record.
fn still_works(agent: &Agent, name: &str) -> Value {
    let (found, record) = agent.call_recorded(name, &json!({"do": "find"}));
    assert_eq!(found, json!([]));
    record
}

#[test]
fn an_unknown_function_is_not_found() {
    let agent = shared();
    let response = agent.invoke("no-such-function", &json!({}));
    refused(&response, 404, "ResourceNotFoundException");
    let message = response.json()["message"].to_string();
    assert!(message.contains("function:no-such-function"), "{message}");
    // A name that cannot be one is not there either.
    for name in ["..", "a%2Fb", &"x".repeat(65)] {
        assert_eq!(agent.invoke(name, &json!({})).status, 404, "{name}");
    }
    agent
        .cli_invoke("no-such-function", b"{}")
        .refuses("ResourceNotFoundException");
}

#[test]
fn a_payload_over_six_mebibytes_is_too_large() {
    let agent = shared();
    let payload = vec![b' '; MAX_PAYLOAD + 1];
    let response = agent.try_invoke(TOUR, &payload).unwrap();
    refused(&response, 413, "RequestTooLargeException");
    // The same without a length ahead.
    let socket = agent.place().socket();
    let response = http::chunked(&socket, "POST", &invocations(TOUR), &payload).unwrap();
    refused(&response, 413, "RequestTooLargeException");
    // Known or not: its size is wrong first.
    let response = agent.try_invoke("no-such-function", &payload).unwrap();
    refused(&response, 413, "RequestTooLargeException");
    agent
        .cli_invoke(TOUR, &payload)
        .refuses("RequestTooLargeException");
    still_works(&agent, TOUR);
}

#[test]
fn a_payload_that_is_not_json_never_reaches_the_function() {
    let agent = shared();
    let payloads: [&[u8]; 6] = [
        b"{",
        b"no json",
        b"{} {}",
        b"\xff\xfe",
        b"{\"a\": 01}",
        b"'single'",
    ];
    for payload in payloads {
        let response = agent.try_invoke(TOUR, payload).unwrap();
        refused(&response, 400, "InvalidRequestContentException");
        let record = agent.get(&format!("/v1/requests/{}", response.request_id()));
        assert_eq!(record.status, 404, "{record:?}");
    }
    agent
        .cli_invoke(TOUR, b"no json")
        .refuses("InvalidRequestContentException");
}

#[test]
fn a_request_in_another_protocol_is_refused() {
    let agent = shared();
    assert_eq!(agent.http("GET", &invocations(TOUR), &[], b"").status, 405);
    assert_eq!(agent.get("/no/such/path").status, 404);
    let kind = [("x-amz-invocation-type", "Later")];
    let response = agent.http("POST", &invocations(TOUR), &kind, b"{}");
    refused(&response, 400, "InvalidParameterValueException");
}

#[test]
fn a_handler_that_raises_is_an_unhandled_error_and_its_environment_is_reset() {
    let agent = shared();
    let response = agent.invoke(TOUR, &json!({"do": "leave", "then": "fail"}));
    let error = unhandled(&response);
    assert_eq!(error["errorType"], "ValueError");
    assert_eq!(error["errorMessage"], "this handler fails");
    let trace = error["stackTrace"].as_array().unwrap();
    assert!(
        trace
            .iter()
            .any(|line| line.as_str().unwrap().contains("in fail")),
        "{error}"
    );
    let record = agent.record(&response);
    assert_eq!(record["status"], "function_error");
    assert!(record["dirty_pages"].as_u64().unwrap() > 0, "{record}");
    assert_eq!(
        still_works(&agent, TOUR)["environment"],
        record["environment"]
    );

    let run = agent.cli_invoke(TOUR, br#"{"do": "fail"}"#);
    run.refuses(r#""errorType": "ValueError""#);
    assert_eq!(run.stdout, "");
}

#[test]
fn a_handler_that_exits_is_an_exit_error_and_its_environment_is_reset() {
    let agent = shared();
    let cases = [
        (
            json!({"do": "leave", "then": "leave_by_exit"}),
            "Runtime exited with error: exit status 3",
        ),
        (
            json!({"do": "leave_at_once"}),
            "Runtime exited with error: exit status 4",
        ),
        (
            json!({"do": "leave_at_once", "status": 0}),
            "Runtime exited without providing a reason",
        ),
        (
            json!({"do": "signal_self", "signal": 9}),
            "Runtime exited with error: signal: killed",
        ),
        (
            json!({"do": "signal_self", "signal": 11}),
            "Runtime exited with error: signal: segmentation fault",
        ),
    ];
    for (event, reason) in cases {
        let response = agent.invoke(TOUR, &event);
        let error = unhandled(&response);
        assert_eq!(error["errorType"], "Runtime.ExitError", "{event}");
        let message = format!("RequestId: {} Error: {reason}", response.request_id());
        assert_eq!(error["errorMessage"], message, "{event}");
        let record = agent.record(&response);
        assert_eq!(record["destroyed"], Value::Null, "{event}");
        assert_eq!(
            still_works(&agent, TOUR)["environment"],
            record["environment"],
            "{event}"
        );
    }
}

#[test]
fn a_handler_that_takes_all_memory_ends_and_nothing_else_does() {
    let agent = shared();
    let response = agent.invoke(TOUR, &json!({"do": "hoard"}));
    let error = unhandled(&response);
    // Either Python notices or the guest's kernel does.
    let kind = error["errorType"].as_str().unwrap();
    assert!(
        ["MemoryError", "Runtime.OutOfMemory"].contains(&kind),
        "{error}"
    );
    agent.record(&response);
    still_works(&agent, TOUR);
}

#[test]
fn a_handler_that_runs_past_its_timeout_costs_its_environment_and_the_caller_is_told() {
    let agent = shared();
    // Made by the agent that runs it: its memory is there, and its first request is quick.
    let created = agent.create(IMPATIENT, &tour_code(), &["--timeout", "3"]);
    assert!(created.success, "{created:?}");
    for event in [json!({"do": "nap", "seconds": 30}), json!({"do": "spin"})] {
        let poisoned = agent.poisoned("timeout");
        let before = still_works(&agent, IMPATIENT);
        let environment = before["environment"].as_str().unwrap();
        let mut machines = agent.machines();
        machines.retain(|machine| machine.read("cgroup").contains(environment));
        assert_eq!(machines.len(), 1, "{environment}");
        let start = Instant::now();
        let response = agent.invoke(IMPATIENT, &event);
        assert!(start.elapsed().as_secs() >= 3, "{:?}", start.elapsed());
        let error = unhandled(&response);
        let id = response.request_id();
        let expected = json!({
            "errorType": "Sandbox.Timedout",
            "errorMessage": format!("RequestId: {id} Error: Task timed out after 3.00 seconds"),
        });
        assert_eq!(error, expected);
        let record = agent.record(&response);
        assert_eq!(record["environment"], before["environment"]);
        assert_eq!(record["destroyed"], "Sandbox.Timedout");
        assert_eq!(record["reset"], Value::Null);
        assert_eq!(agent.poisoned("timeout"), poisoned + 1);
        // Its process is gone, with its cgroup.
        let cgroup = agent.place().cgroup().join(environment);
        wait_for("the end of the environment", || {
            (!cgroup.exists()).then_some(())
        });
        assert!(machines.iter().all(|machine| !machine.runs()), "{event}");
        let after = still_works(&agent, IMPATIENT);
        assert_ne!(after["environment"], before["environment"]);
        assert_eq!(after["fresh"], true);
    }
    assert!(agent.cli(&["function", "delete", IMPATIENT]).success);
}
