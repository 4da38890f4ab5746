//! What a runtime does around a snapshot and a restore, and what extensions do after an answer.

use serde_json::json;

use crate::harness::{code, shared, wait_for};

#[test]
fn hooks_run_in_order_around_the_snapshot_and_after_every_restore() {
    let agent = shared();
    let created = agent.create("hooks", &code("hooks"), &["--timeout", "60", "--json"]);
    assert!(created.success, "{created:?}");
    assert_eq!(agent.function("hooks")["build"]["restore_hooks"], true);
    let mut drawn = Vec::new();
    for _ in 0..3 {
        let order = agent.call("hooks", &json!({}));
        let order = order.as_array().unwrap();
        // Those before in the reverse order of their registration, once; those after in order,
        // in each request anew.
        let names: Vec<_> = order.iter().filter_map(|name| name.as_str()).collect();
        assert_eq!(names, ["init", "before 2", "before 1", "after 1"]);
        drawn.push(order[4]["random"].as_f64().unwrap());
    }
    // The function seeded its generator with a number of its own before the snapshot.
    drawn.dedup();
    assert_eq!(drawn.len(), 3, "{drawn:?}");
}

#[test]
fn a_hook_that_fails_after_a_restore_fails_the_request_and_ends_the_machine() {
    let agent = shared();
    let code = code("broken-hooks");
    let created = agent.create("broken-hooks", &code, &["--timeout", "60"]);
    assert!(created.success, "{created:?}");
    for _ in 0..2 {
        let poisoned = agent.poisoned("spoilt");
        let failed = agent.invoke("broken-hooks", &json!({}));
        assert_eq!(failed.header("x-amz-function-error"), "Unhandled");
        assert_eq!(failed.json()["errorMessage"], "this hook fails");
        let record = agent.record(&failed);
        assert_eq!(record["reset"], json!(null), "{record}");
        assert!(record["destroyed"].is_string(), "{record}");
        assert_eq!(agent.poisoned("spoilt"), poisoned + 1);
    }
}

#[test]
fn a_function_with_a_client_that_cannot_be_rehearsed_is_served_all_the_same() {
    let agent = shared();
    let created = agent.create("own-client", &code("own-client"), &["--timeout", "60"]);
    assert!(created.success, "{created:?}");
    assert_eq!(agent.call("own-client", &json!({})), 1);
    assert!(!agent.place().log().contains("cannot be rehearsed"));
}

#[test]
fn an_answer_does_not_wait_for_extensions_and_the_reset_does() {
    let agent = shared();
    let created = agent.create("extended", &code("extended"), &["--timeout", "10"]);
    assert!(created.success, "{created:?}");
    for _ in 0..2 {
        let answer = agent.invoke("extended", &json!({}));
        assert_eq!(answer.json(), "answered");
        // Known only when the reset is over.
        let record = agent.record(&answer);
        assert!(record["reset"].is_object(), "{record}");
        let last = format!("the extension is done with {}", answer.request_id());
        assert!(agent.place().log().contains(&last));
    }
    // One that does not finish costs the machine, and the caller nothing.
    let answer = agent.invoke("extended", &json!({"stall": true}));
    assert_eq!(answer.json(), "answered");
    let path = format!("/v1/requests/{}", answer.request_id());
    let record = wait_for("the machine's end", || {
        let record = agent.get(&path).json();
        (record["finished"] == true).then_some(record)
    });
    let destroyed = record["destroyed"].as_str().unwrap_or_default();
    assert!(destroyed.contains("did not finish"), "{record}");
    assert_eq!(agent.poisoned("extensions"), 1);
}
