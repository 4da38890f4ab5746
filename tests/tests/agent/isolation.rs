//! Request N+1 sees nothing of request N, although both ran in the same microVM.

use serde_json::{Value, json};

use crate::harness::{TOUR, shared};

/// Every trace that the function knows how to leave.
const TRACES: [&str; 10] = [
    "bound_socket",
    "child_process",
    "environment_variable",
    "global",
    "module_attribute",
    "shared_memory",
    "thread",
    "tmp_file",
    "var_tmp_file",
    "working_directory",
];

#[test]
fn no_trace_of_a_request_is_there_in_the_next_one() {
    let agent = shared();
    let (_, first) = agent.call_recorded(TOUR, &json!({"do": "find"}));
    for round in 0..3 {
        let (traces, left) = agent.call_recorded(TOUR, &json!({"do": "leave"}));
        assert_eq!(traces["before"], json!([]), "round {round}");
        // A trace that could not be seen would prove nothing.
        assert_eq!(traces["left"], json!(TRACES), "round {round}");
        let (found, after) = agent.call_recorded(TOUR, &json!({"do": "find"}));
        assert_eq!(found, json!([]), "round {round}");
        // It was the very same microVM.
        for record in [&left, &after] {
            assert_eq!(record["environment"], first["environment"]);
            assert_eq!(record["fresh"], false);
        }
    }
}

#[test]
fn every_request_is_followed_by_a_reset_that_says_what_it_put_back() {
    let agent = shared();
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value}"));
    let mut generation = 0;
    let mut cost = |pages: u64| {
        let (_, record) = agent.call_recorded(TOUR, &json!({"do": "dirty", "pages": pages}));
        assert_eq!(
            (&record["status"], &record["destroyed"]),
            (&json!("success"), &Value::Null)
        );
        let reset = &record["reset"];
        assert_eq!(reset["pages"], record["dirty_pages"]);
        assert!(number(&reset["pages_by_vcpu"]) <= number(&reset["pages"]));
        assert!(
            number(&reset["pages"])
                <= number(&reset["pages_by_vcpu"]) + number(&reset["pages_by_devices"])
        );
        assert!(number(&reset["pages_by_devices"]) > 0, "{record}");
        for step in ["pause_ns", "state_ns", "pages_ns", "total_ns"] {
            assert!(number(&reset[step]) > 0, "{record}");
        }
        for step in ["resume_ns", "function_ns", "total_ns", "restore_ns"] {
            assert!(number(&record[step]) > 0, "{record}");
        }
        // Each request runs in a restore generation of its own.
        assert!(number(&record["generation"]) > generation, "{record}");
        generation = number(&record["generation"]);
        number(&reset["pages"])
    };
    // A snapshot's very first request writes more than any later one.
    cost(1);
    let (few, many, few_again) = (cost(1), cost(6001), cost(1));
    // What a request wrote is put back, and nothing accumulates. What every request writes
    // varies by some hundred pages: a slow one sees more of the guest kernel's own work.
    assert!(many > few + 5000, "{few} {many}");
    assert!(few_again < few + 1000, "{few} {few_again}");
}

#[test]
fn a_function_cannot_change_its_own_code() {
    let agent = shared();
    let write = |path: &str| agent.call(TOUR, &json!({"do": "write", "path": path}));
    assert_eq!(write("/var/task/app.py"), "EROFS");
    assert_eq!(write("/var/task/new.py"), "EROFS");
    assert_eq!(write("/tmp/new.py"), "written");
}
