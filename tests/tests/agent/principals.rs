//! Requests of different tenants, for each policy.

use serde_json::{Value, json};

use crate::harness::agent::Agent;
use crate::harness::cli::snapback;
use crate::harness::{NO_BLANKS, TOUR, own_place};

/// The environments of one request for each tenant.
fn environments(agent: &Agent, tenants: &[&str]) -> Vec<String> {
    let one = |tenant: &&str| {
        let response = agent.invoke_for(tenant, TOUR, &json!({"do": "facts"}));
        assert_eq!(
            response.json()["context"]["tenant_id"],
            *tenant,
            "{response:?}"
        );
        let record = agent.record(&response);
        record["environment"].as_str().unwrap().to_owned()
    };
    tenants.iter().map(one).collect()
}

fn changes(agent: &Agent, between: &str) -> u64 {
    agent.metric(&format!(
        "snapback_principal_changes_total{{between=\"{between}\"}}"
    ))
}

fn policy(policy: &str) -> String {
    format!("{NO_BLANKS}[isolation]\nbetween_principals = \"{policy}\"\n")
}

const TENANTS: [&str; 4] = ["a", "b", "a", "b"];

/// Checks that each tenant has an environment of its own.
fn apart(agent: &Agent) {
    let seen = environments(agent, &TENANTS);
    assert_ne!(seen[0], seen[1]);
    assert_eq!((&seen[0], &seen[1]), (&seen[2], &seen[3]));
    // Requests without a tenant are another principal's.
    let (_, record) = agent.call_recorded(TOUR, &json!({"do": "find"}));
    let owner = record["environment"].as_str().unwrap().to_owned();
    assert!(!seen.contains(&owner));
    assert_eq!((changes(agent, "fresh"), changes(agent, "barrier")), (2, 0));
}

/// Checks that all tenants have the same environment, and what was between their requests.
fn together(agent: &Agent, between: &str) {
    let mut seen = environments(agent, &TENANTS);
    seen.dedup();
    assert_eq!(seen.len(), 1);
    assert_eq!(changes(agent, between), 3);
    assert_eq!(changes(agent, "fresh"), 0);
}

#[test]
fn by_default_tenants_share_a_microvm_behind_a_barrier_or_not_at_all() {
    let report = snapback(&["doctor", "--json"]).json();
    let checks = report["checks"].as_array().unwrap();
    let barrier = checks
        .iter()
        .find(|check| check["name"] == "branch-barrier");
    let has_barrier = barrier.unwrap()["ok"] == Value::Bool(true);
    let (place, _turn) = own_place();
    let agent = place.start(NO_BLANKS);
    assert_eq!(
        agent.metric("snapback_branch_barrier"),
        u64::from(has_barrier)
    );
    if has_barrier {
        together(&agent, "barrier");
    } else {
        apart(&agent);
    }
}

#[test]
fn each_policy_does_what_it_says() {
    let (place, _turn) = own_place();
    let agent = place.start(&policy("fresh"));
    apart(&agent);
    let place = agent.terminate();
    let agent = place.start(&policy("barrier"));
    together(&agent, "barrier");
    let place = agent.terminate();
    let agent = place.start(&policy("none"));
    together(&agent, "nothing");
}
