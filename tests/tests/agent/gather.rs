//! A function's snapshot is made anew when it is known what its requests write.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::agent::Agent;
use crate::harness::{OTHER, TOUR, own_place, wait_for};

/// Each request has a microVM that was restored for it.
const SINGLE_USE: &str = "[reset]\nin_place = false\n";

fn snapshot(agent: &Agent) -> String {
    let id = agent.function(TOUR)["snapshot"].clone();
    id.as_str().unwrap().to_owned()
}

fn folder(agent: &Agent, id: &str) -> PathBuf {
    agent.place().state().join("snapshots").join(id)
}

fn serves(agent: &Agent) {
    assert_eq!(agent.call(TOUR, &json!({"do": "find"})), json!([]));
}

/// Serves requests until the function has another snapshot; which.
fn replaced(agent: &Agent, old: &str) -> String {
    wait_for("another snapshot", || {
        serves(agent);
        Some(snapshot(agent)).filter(|id| id != old)
    })
}

/// The most pages of a `written-set` that lie in one place of 2 MiB, once there is one.
fn densest(agent: &Agent, folder: &Path) -> usize {
    let file = folder.join("written-set");
    let bytes = wait_for("what requests write", || {
        serves(agent);
        fs::read(&file).ok()
    });
    let mut places = BTreeMap::<u32, usize>::new();
    let runs = &bytes[14..bytes.len() - 32];
    for run in runs.chunks_exact(8) {
        let number = |at: usize| u32::from_le_bytes(run[at..at + 4].try_into().unwrap());
        for page in number(0)..number(0) + number(4) {
            *places.entry(page / 512).or_default() += 1;
        }
    }
    places.into_values().max().unwrap()
}

#[test]
fn what_requests_write_is_put_together_and_requests_are_served_meanwhile_and_after() {
    let (place, _turn) = own_place();
    let agent = place.start(SINGLE_USE);
    let (old, other) = (snapshot(&agent), agent.function(OTHER));
    let new = replaced(&agent, &old);
    let manifest: Value =
        serde_json::from_slice(&fs::read(folder(&agent, &new).join("snapshot.json")).unwrap())
            .unwrap();
    assert_eq!(manifest["gathered"], true, "{manifest}");
    assert_eq!(manifest["function"], TOUR);
    wait_for("the end of the old snapshot", || {
        (!folder(&agent, &old).exists()).then_some(())
    });
    // Python's objects lay in a dozen places.
    let densest = densest(&agent, &folder(&agent, &new));
    assert!(densest >= 200, "{densest} pages in one place");
    // The next agent finds it so, and has nothing to do.
    let agent = agent.terminate().start(SINGLE_USE);
    for _ in 0..4 {
        serves(&agent);
    }
    assert_eq!(snapshot(&agent), new);
    assert_eq!(agent.function(OTHER)["snapshot"], other["snapshot"]);
    assert!(!agent.place().log().contains("stays scattered"));
}

#[test]
fn a_function_that_is_deleted_meanwhile_leaves_no_snapshot_behind() {
    let (place, _turn) = own_place();
    let agent = place.start(SINGLE_USE);
    let kept = agent.function(OTHER)["snapshot"]
        .as_str()
        .unwrap()
        .to_owned();
    let begun = || {
        agent
            .place()
            .entries("snapshots")
            .iter()
            .any(|name| name.starts_with('.'))
    };
    wait_for("a snapshot that is being made", || {
        serves(&agent);
        begun().then_some(())
    });
    let path = format!("/v1/functions/{TOUR}");
    assert_eq!(agent.http("DELETE", &path, &[], b"").status, 204);
    wait_for("the end of all other snapshots", || {
        (agent.place().entries("snapshots") == [kept.clone()]).then_some(())
    });
    let names = agent.function_names();
    assert_eq!(names, [OTHER]);
    let agent = agent.terminate().start("");
    assert_eq!(agent.function_names(), [OTHER]);
}

#[test]
fn a_function_keeps_its_snapshot_where_that_is_configured() {
    let (place, _turn) = own_place();
    let agent = place.start(&format!("{SINGLE_USE}[pager]\ngather = false\n"));
    let id = snapshot(&agent);
    densest(&agent, &folder(&agent, &id));
    for _ in 0..3 {
        serves(&agent);
    }
    assert_eq!(snapshot(&agent), id);
    assert_eq!(agent.place().entries("snapshots").len(), 2);
}
