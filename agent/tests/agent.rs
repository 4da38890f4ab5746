//! The whole agent, as a program, from its command line: with a VMM process that
//! is real in everything but the microVM.
//!
//! The pretended VMM is this very test program, started through a script as
//! `snapback-vmm`. It speaks the control protocol and guest-init's, so everything
//! of the agent runs for real: processes, descriptors, snapshots, pager, leases,
//! store, API, command line. Needs `/dev/kvm` and `/dev/userfaultfd` to exist (they
//! are only opened); without them the tests say so and pass.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

#[path = "node/fixture.rs"]
mod fixture;
#[path = "node/pretended_vmm.rs"]
mod pretended_vmm;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use fixture::{Fixture, Run};
use serde_json::json;

/// Not a test: what the script starts.
#[test]
#[ignore = "the pretended VMM process"]
fn act_as_vmm() {
    pretended_vmm::serve();
}

macro_rules! fixture {
    () => {
        match Fixture::new() {
            Some(fixture) => fixture,
            None => return,
        }
    };
}

fn says(run: &Run, words: &str) {
    assert!(!run.success && run.stderr.contains(words), "{run:?}");
}

#[test]
fn a_function_is_created_and_its_environment_serves_again_and_again() {
    let fixture = fixture!();
    let agent = fixture.start();
    let created = fixture.create("f", &[]);
    assert!(
        created.success && created.stdout.starts_with("f is ready (boot "),
        "{created:?}"
    );
    let mut environments = Vec::new();
    for number in 0..5 {
        let event = json!({"do": "echo", "number": number});
        let (run, record) = fixture.invoke_recorded("f", &event);
        assert!(run.success, "{run:?}");
        assert_eq!(run.json()["event"], event);
        assert_eq!(record["dirty_pages"], 5);
        assert_eq!(record["fresh"], number == 0);
        assert_eq!(record["status"], "success");
        environments.push(record["environment"].to_string());
    }
    environments.dedup();
    assert_eq!(environments.len(), 1);
    let listed = fixture.snapback(&["function", "list"]);
    assert!(
        listed.stdout.contains("f ") && listed.stdout.contains("python3.11"),
        "{listed:?}"
    );
    says(&fixture.create("f", &[]), "ResourceConflictException");
    agent.terminate();
    assert_eq!(fixture.vmm_processes(), 0);
}

#[test]
fn the_functions_failures_are_lambdas_answers() {
    let fixture = fixture!();
    let _agent = fixture.start();
    assert!(fixture.create("f", &["--timeout", "1"]).success);

    let (run, record) = fixture.invoke_recorded("f", &json!({"do": "raise"}));
    says(&run, r#""errorType":"ValueError""#);
    assert_eq!(record["dirty_pages"], 5);
    let (run, record) = fixture.invoke_recorded("f", &json!({"do": "exit"}));
    says(&run, "Error: Runtime exited with error: exit status 1");
    assert_eq!(
        (&record["error_type"], &record["dirty_pages"]),
        (&json!("Runtime.ExitError"), &json!(5))
    );
    let (run, record) = fixture.invoke_recorded("f", &json!({"do": "sleep"}));
    says(&run, "Error: Task timed out after 1.00 seconds");
    assert_eq!(record["destroyed"], "Sandbox.Timedout");
    let (run, record) = fixture.invoke_recorded("f", &json!({"do": "die"}));
    says(&run, r#""errorType":"Sandbox.Failure""#);
    assert_eq!(record["destroyed"], "Sandbox.Failure");
    let (run, record) = fixture.invoke_recorded("f", &json!({"do": "babble"}));
    says(&run, "not a frame");
    assert_eq!(record["destroyed"], "Sandbox.Failure");
    let (run, record) = fixture.invoke_recorded("f", &json!({"do": "spoil"}));
    assert!(run.success, "{run:?}");
    assert!(
        record["destroyed"]
            .as_str()
            .unwrap()
            .contains("it is spoilt"),
        "{record}"
    );

    says(
        &fixture.invoke("unknown", b"{}"),
        "ResourceNotFoundException",
    );
    says(
        &fixture.invoke("f", b"no json"),
        "InvalidRequestContentException",
    );
    says(
        &fixture.invoke("f", &vec![b' '; 6 * 1024 * 1024 + 1]),
        "RequestTooLargeException",
    );
    assert!(fixture.invoke("f", br#"{"do": "echo"}"#).success);
}

#[test]
fn a_large_event_and_much_output_pass_each_other() {
    let fixture = fixture!();
    let _agent = fixture.start();
    assert!(fixture.create("f", &["--timeout", "60"]).success);
    let event = json!({"do": "echo", "chatty": true, "large": "x".repeat(5 * 1024 * 1024)});
    let run = fixture.invoke("f", event.to_string().as_bytes());
    assert!(run.success, "{}", run.stderr);
    assert!(run.json()["event"] == event);
}

#[test]
fn a_function_that_fails_to_initialise_is_not_registered() {
    let fixture = fixture!();
    let _agent = fixture.start();
    says(
        &fixture.create("f", &["--env", "FAIL_INIT=1"]),
        "Runtime.ImportModuleError: no module",
    );
    assert_eq!(fixture.snapback(&["function", "list"]).stdout, "");
    assert_eq!(
        fs::read_dir(fixture.state().join("snapshots"))
            .unwrap()
            .count(),
        0
    );
    assert!(fixture.create("f", &[]).success);
}

#[test]
fn two_requests_at_once_have_two_environments() {
    let fixture = fixture!();
    let _agent = fixture.start();
    assert!(fixture.create("f", &["--timeout", "60"]).success);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| fixture.invoke("f", br#"{"do": "nap"}"#)))
            .collect();
        for run in runs {
            let run = run.join().unwrap();
            assert!(run.success, "{run:?}");
        }
    });
    assert!(fixture.vmm_processes() >= 2);
    assert!(fixture.snapback(&["function", "delete", "f"]).success);
    says(&fixture.invoke("f", b"{}"), "ResourceNotFoundException");
    fixture.wait_for_no_vmm();
    assert_eq!(
        fs::read_dir(fixture.state().join("images"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        fs::read_dir(fixture.state().join("snapshots"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn functions_survive_a_restart_and_damaged_snapshots_do_not() {
    let fixture = fixture!();
    let agent = fixture.start();
    for name in ["whole", "memory", "cut", "changed", "json", "gone"] {
        assert!(fixture.create(name, &[]).success);
    }
    let file = |name: &str, file: &str| {
        let json = fixture.snapback(&["function", "list", "--json"]).json();
        let all = json["functions"].as_array().unwrap();
        let function = all
            .iter()
            .find(|function| function["name"] == name)
            .unwrap();
        let id = function["snapshot"].as_str().unwrap();
        fixture.state().join("snapshots").join(id).join(file)
    };
    let memory = file("memory", "memory");
    let (cut, changed) = (file("cut", "state"), file("changed", "state"));
    let (json, gone) = (file("json", "snapshot.json"), file("gone", "memory"));
    agent.terminate();

    fs::File::options()
        .write(true)
        .open(&memory)
        .unwrap()
        .write_all_at(&[1], 5 << 20)
        .unwrap();
    let state = fs::read(&cut).unwrap();
    fs::write(&cut, &state[..state.len() / 2]).unwrap();
    let mut state = fs::read(&changed).unwrap();
    // Within the first section's body.
    state[14 + 44] ^= 1;
    fs::write(&changed, state).unwrap();
    fs::write(&json, "{}").unwrap();
    fs::File::options()
        .write(true)
        .open(&gone)
        .unwrap()
        .set_len(4096)
        .unwrap();

    let _agent = fixture.start();
    let run = fixture.invoke("whole", br#"{"do": "echo"}"#);
    assert!(run.success, "{run:?}");
    says(&fixture.invoke("memory", b"{}"), "section `memory`");
    says(&fixture.invoke("cut", b"{}"), "section `state: ");
    says(
        &fixture.invoke("changed", b"{}"),
        "section `state: machine`",
    );
    says(&fixture.invoke("json", b"{}"), "section `snapshot.json`");
    says(&fixture.invoke("gone", b"{}"), "section `memory`");
}

#[test]
fn an_agent_that_is_killed_leaves_its_functions_and_nothing_else() {
    let fixture = fixture!();
    let agent = fixture.start();
    assert!(fixture.create("f", &["--timeout", "60"]).success);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| fixture.invoke("f", br#"{"do": "sleep"}"#));
        let start = Instant::now();
        while fixture.vmm_processes() == 0 {
            assert!(start.elapsed() < fixture::LIMIT);
            std::thread::sleep(Duration::from_millis(10));
        }
        agent.kill();
        assert!(!running.join().unwrap().success);
    });
    fixture.wait_for_no_vmm();
    let _agent = fixture.start();
    let run = fixture.invoke("f", br#"{"do": "echo"}"#);
    assert!(run.success, "{run:?}");
}

#[test]
fn a_second_agent_is_sent_away_and_the_first_goes_on() {
    let fixture = fixture!();
    let _agent = fixture.start();
    assert!(fixture.create("f", &[]).success);
    says(&fixture.agent_now(&[]), "another agent uses");
    // The same state through another socket.
    let other = fixture.state().join("other.sock");
    says(
        &fixture.agent_now(&["--socket", other.to_str().unwrap()]),
        "another agent uses",
    );
    assert!(fixture.invoke("f", br#"{"do": "echo"}"#).success);
}

#[test]
fn a_term_signal_lets_the_running_request_finish() {
    let fixture = fixture!();
    let agent = fixture.start();
    assert!(fixture.create("f", &["--timeout", "60"]).success);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| fixture.invoke("f", br#"{"do": "nap"}"#));
        let start = Instant::now();
        while fixture.vmm_processes() == 0 {
            assert!(start.elapsed() < fixture::LIMIT);
            std::thread::sleep(Duration::from_millis(5));
        }
        // The nap is long enough for the request to run by now.
        std::thread::sleep(Duration::from_millis(200));
        agent.terminate();
        let run = running.join().unwrap();
        assert!(run.success, "{run:?}");
    });
    assert!(!fixture.socket().exists());
    assert_eq!(fixture.vmm_processes(), 0);
    says(&fixture.invoke("f", b"{}"), "there is no agent at");
}

#[test]
fn code_that_is_no_folder_or_has_no_files_is_refused() {
    let fixture = fixture!();
    let _agent = fixture.start();
    let empty = fixture.state().join("empty");
    fs::create_dir(&empty).unwrap();
    says(&fixture.create_from("f", &empty, &[]), "it has no files");
    says(
        &fixture.create_from("f", &empty.join("missing"), &[]),
        "is not a folder",
    );
    says(&fixture.create("f", &["--runtime", "cobol"]), "runtime");
}
