//! Functions that try what they should not be able to do, or use up all that there is.

use serde_json::{Value, json};

use crate::harness::agent::{Agent, invocations};
use crate::harness::{code, shared};

const HOSTILE: &str = "hostile";

fn create(agent: &Agent) {
    if agent.function_names().iter().any(|name| name == HOSTILE) {
        return;
    }
    let code = code("hostile");
    // Over before the tests' client gives up: a machine that its function made thrash is
    // answered for by its timeout.
    let more = ["--timeout", "45", "--log-format", "json"];
    let created = agent.create(HOSTILE, &code, &more);
    assert!(created.success, "{created:?}");
}

fn does(agent: &Agent, what: &str) -> Value {
    agent.call(HOSTILE, &json!({ "do": what }))
}

#[test]
fn a_function_has_no_privileges_and_no_way_to_the_host() {
    let agent = shared();
    create(&agent);
    let found = does(&agent, "confinement");
    assert_eq!(found["uid"], 993, "{found}");
    let none = json!(vec!["0000000000000000"; 5]);
    assert_eq!(found["capabilities"], none, "{found}");
    assert_eq!(found["no_new_privs"], "1");
    let denied = [
        ("vsock", "EAFNOSUPPORT"),
        ("vsock_datagram", "EAFNOSUPPORT"),
        ("disk", "EACCES"),
        ("console", "EACCES"),
        ("mount", "EPERM"),
        ("clock", "EPERM"),
        ("reboot", "EPERM"),
        ("kill_init", "EPERM"),
        ("machine_id", "EROFS"),
    ];
    for (what, error) in denied {
        assert_eq!(found[what], error, "{what}: {found}");
    }
    // Which of two good reasons the kernel names first is its own business.
    for what in ["packet", "init", "sysctl", "sysrq", "sys", "namespace"] {
        let error = found[what].as_str().unwrap_or_default();
        assert!(error.starts_with('E'), "{what}: {found}");
    }
    assert_eq!(found["firmware"], json!([]));
    // Other users' processes are not there: PID 1 least of all.
    assert!(found["processes"][0].as_i64().unwrap() > 1, "{found}");
    assert_eq!(found["named"], true);
    let hosts = found["hosts"].as_str().unwrap();
    assert!(hosts.contains("sandbox.localdomain"), "{hosts}");
    assert_eq!(found["resolv_conf"], "");
}

#[test]
fn a_fork_bomb_a_full_disk_and_stragglers_end_with_their_request() {
    let agent = shared();
    create(&agent);
    // Half of the memory, as nothing else was asked for; and the function outlives it.
    let full = json!({"before": [], "error": "ENOSPC", "mib": 64});
    assert_eq!(does(&agent, "full_tmp"), full);
    let bomb = agent.invoke(HOSTILE, &json!({"do": "fork_bomb"}));
    assert_eq!(bomb.status, 200, "{bomb:?}");
    assert_eq!(does(&agent, "stragglers"), "left");
    // The next request finds none of it.
    assert_eq!(does(&agent, "full_tmp"), full);
    assert_eq!(does(&agent, "noise"), "said");
}

#[test]
fn tmp_holds_what_the_description_says_and_is_empty_in_the_next_request() {
    let agent = shared();
    let more = ["--memory", "256", "--ephemeral-storage", "70"];
    let created = agent.create(
        "storage",
        &code("hostile"),
        &[&more[..], &["--timeout", "60"]].concat(),
    );
    assert!(created.success, "{created:?}");
    assert_eq!(agent.function("storage")["ephemeral_storage_mb"], 70);
    for _ in 0..2 {
        let found = agent.call("storage", &json!({"do": "full_tmp"}));
        assert_eq!(found, json!({"before": [], "error": "ENOSPC", "mib": 70}));
    }
    let more = ["--memory", "128", "--ephemeral-storage", "512"];
    agent
        .create("too-large", &code("hostile"), &more)
        .refuses("would have to be 1024");
}

#[test]
fn a_function_that_takes_all_memory_is_told_from_one_that_exits() {
    let agent = shared();
    create(&agent);
    let failed = agent.invoke(HOSTILE, &json!({"do": "hoard"}));
    assert_eq!(failed.header("x-amz-function-error"), "Unhandled");
    let error = failed.json();
    assert_eq!(error["errorType"], "Runtime.OutOfMemory", "{error}");
    let message = error["errorMessage"].as_str().unwrap();
    assert!(message.contains("signal: killed"), "{message}");
    assert_eq!(does(&agent, "noise"), "said");
}

#[test]
fn a_function_that_floods_its_api_or_closes_its_output_still_answers() {
    let agent = shared();
    create(&agent);
    assert_eq!(does(&agent, "flood"), 300);
    assert_eq!(does(&agent, "closed_output"), "answered");
    // Its runtime finds another connection, or ends: the request does so, too, and is the last
    // that is heard of it.
    let closed = agent.invoke(HOSTILE, &json!({"do": "closed_api"}));
    assert_eq!(closed.status, 200, "{closed:?}");
    match closed.header("x-amz-function-error") {
        "" => assert!(closed.json()["closed"].as_u64().unwrap() > 0),
        _ => assert_eq!(
            closed.json()["errorType"],
            "Runtime.ExitError",
            "{closed:?}"
        ),
    }
    let calls = json!({"do": "wrong_calls", "calls": [
        ["POST", "/2018-06-01/runtime/invocation/x/response"],
        ["POST", "/2018-06-01/runtime/init/error"],
        ["POST", "/2018-06-01/runtime/restore/error"],
        ["GET", "/2018-06-01/runtime/restore/next"],
        ["GET", "/2018-06-01/runtime/nothing"],
        ["DELETE", "/2018-06-01/runtime/invocation/next"],
    ]});
    assert_eq!(
        agent.call(HOSTILE, &calls),
        json!([400, 403, 403, 403, 404, 405])
    );
}

#[test]
fn long_lines_binary_output_and_json_platform_lines_reach_the_log() {
    let agent = shared();
    create(&agent);
    let event = json!({"do": "noise"}).to_string();
    let headers = [("x-amz-log-type", "Tail")];
    let answer = agent.http("POST", &invocations(HOSTILE), &headers, event.as_bytes());
    assert_eq!(answer.json(), "said");
    use base64::Engine as _;
    let tail = base64::engine::general_purpose::STANDARD
        .decode(answer.header("x-amz-log-result"))
        .unwrap();
    let tail = String::from_utf8_lossy(&tail).into_owned();
    let lines: Vec<_> = tail.lines().rev().take(2).collect();
    assert_eq!(lines[1], "the end");
    let report: Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(report["type"], "platform.report");
    assert_eq!(report["record"]["requestId"], answer.request_id());
    assert_eq!(report["record"]["status"], "success");
}
