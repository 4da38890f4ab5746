//! Lambda's Invoke, as any of its clients knows it.

use base64::Engine as _;
use serde_json::json;

use crate::harness::agent::invocations;
use crate::harness::{TOUR, shared, wait_for};

#[test]
fn an_answer_is_the_functions_own_under_lambdas_headers() {
    let agent = shared();
    let response = agent.invoke(
        TOUR,
        &json!({"do": "echo", "text": "žluťoučký kůň", "n": [1, 2.5, null]}),
    );
    assert_eq!(response.status, 200);
    assert_eq!(
        response.json(),
        json!({"do": "echo", "text": "žluťoučký kůň", "n": [1, 2.5, null]})
    );
    assert_eq!(response.header("content-type"), "application/json");
    assert_eq!(response.header("x-amz-executed-version"), "$LATEST");
    assert_eq!(response.header("x-amz-function-error"), "");
    assert_eq!(response.request_id().len(), 36);
}

#[test]
fn the_function_is_told_who_calls_it_and_how_long_it_has() {
    let agent = shared();
    let response = agent.invoke(TOUR, &json!({"do": "facts"}));
    let facts = response.json();
    let context = &facts["context"];
    assert_eq!(context["function_name"], TOUR);
    assert_eq!(context["function_version"], "$LATEST");
    assert_eq!(
        context["memory_limit_in_mb"].to_string().trim_matches('"'),
        "128"
    );
    assert_eq!(context["aws_request_id"], response.request_id());
    let arn = format!("arn:aws:lambda:local:000000000000:function:{TOUR}");
    assert_eq!(context["invoked_function_arn"], arn);
    let remaining = context["remaining_ms"].as_i64().unwrap();
    assert!((1..=60_000).contains(&remaining), "{remaining}");
    let environment = &facts["environment"];
    assert_eq!(environment["AWS_LAMBDA_FUNCTION_NAME"], TOUR);
    assert_eq!(environment["_HANDLER"], "app.handler");
    assert_eq!(environment["LAMBDA_TASK_ROOT"], "/var/task");
}

#[test]
fn a_function_is_found_by_its_arn_and_by_its_only_version() {
    let agent = shared();
    let arn = format!("arn:aws:lambda:local:000000000000:function:{TOUR}");
    for path in [
        invocations(&arn),
        invocations(&format!("{arn}:$LATEST")),
        invocations(&format!("{TOUR}:$LATEST")),
        format!("{}?Qualifier=$LATEST", invocations(TOUR)),
    ] {
        let response = agent.http("POST", &path, &[], b"7");
        assert_eq!(
            (response.status, &*response.body),
            (200, &b"7"[..]),
            "{path}"
        );
    }
    let other = agent.http(
        "POST",
        &format!("{}?Qualifier=1", invocations(TOUR)),
        &[],
        b"7",
    );
    assert_eq!(other.status, 404);
}

#[test]
fn the_tail_of_the_output_comes_with_the_answer_when_it_is_asked_for() {
    let agent = shared();
    let event = json!({"do": "chat", "lines": 10}).to_string();
    let tail = |headers: &[(&str, &str)]| {
        let response = agent.http("POST", &invocations(TOUR), headers, event.as_bytes());
        assert_eq!(response.status, 200, "{response:?}");
        let encoded = response.header("x-amz-log-result").to_owned();
        base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .unwrap()
    };
    let asked = tail(&[("x-amz-log-type", "Tail")]);
    assert_eq!(asked.len(), 4096);
    let asked = String::from_utf8(asked).unwrap();
    let last: Vec<_> = asked.lines().rev().take(3).collect();
    assert!(last[0].starts_with("REPORT RequestId: "), "{asked}");
    assert!(last[1].starts_with("END RequestId: "), "{asked}");
    assert_eq!(last[2], "the last word");
    assert_eq!(tail(&[]), b"");
}

#[test]
fn a_dry_run_runs_nothing() {
    let agent = shared();
    let response = agent.http(
        "POST",
        &invocations(TOUR),
        &[("x-amz-invocation-type", "DryRun")],
        b"1",
    );
    assert_eq!((response.status, &*response.body), (204, &b""[..]));
    let record = agent.get(&format!("/v1/requests/{}", response.request_id()));
    assert_eq!(record.status, 404);
}

#[test]
fn an_event_is_accepted_before_it_has_run_and_then_runs() {
    let agent = shared();
    let event = json!({"do": "nap", "seconds": 2}).to_string();
    let headers = [("x-amz-invocation-type", "Event")];
    let accepted = agent.http("POST", &invocations(TOUR), &headers, event.as_bytes());
    assert_eq!((accepted.status, &*accepted.body), (202, &b""[..]));
    let path = format!("/v1/requests/{}", accepted.request_id());
    // There is no record of it before it has ended.
    assert_eq!(agent.get(&path).status, 404);
    let record = wait_for("the event's end", || {
        let record = agent.get(&path);
        (record.status == 200).then(|| record.json())
    });
    assert_eq!(record["status"], "success");
    assert!(
        record["function_ns"].as_u64().unwrap() >= 2_000_000_000,
        "{record}"
    );
}
