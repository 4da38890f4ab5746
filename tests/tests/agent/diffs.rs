//! Snapshots that are stored as diffs of another: smaller, and as good.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::agent::Agent;
use crate::harness::cli::{Run, snapback};
use crate::harness::{TOUR, own_place, tour_code};

const DIFFS: &str = "[snapshots]\ndiffs = true\n";
const THIN: &str = "thin";

fn snapshot_id(agent: &Agent, function: &str) -> String {
    let id = &agent.function(function)["snapshot"];
    id.as_str().unwrap().to_owned()
}

fn folder(agent: &Agent, id: &str) -> PathBuf {
    agent.place().state().join("snapshots").join(id)
}

fn look(agent: &Agent, arguments: &[&str]) -> Run {
    let state = agent.place().state();
    let mut all = vec!["snapshot"];
    all.extend(arguments);
    all.extend(["--state-dir", state.to_str().unwrap()]);
    snapback(&all)
}

fn works(agent: &Agent, function: &str) {
    assert_eq!(agent.call(function, &json!({"do": "find"})), json!([]));
}

#[test]
fn a_function_on_the_same_runtime_is_stored_as_a_diff_and_runs_as_any_other() {
    let (place, _turn) = own_place();
    let agent = place.start(DIFFS);
    let created = agent.create(THIN, &tour_code(), &["--timeout", "60"]);
    assert!(created.success, "{created:?}\n{}", agent.place().log());
    works(&agent, THIN);
    let thin = snapshot_id(&agent, THIN);
    let inspected = look(&agent, &["inspect", &thin, "--json"]).json();
    let base = inspected["bases"][0].as_str().unwrap().to_owned();
    let function = base_function(&agent, &base);
    let whole = look(&agent, &["inspect", &base, "--json"]).json();
    assert_eq!(whole["bases"], json!([]));
    let on_disk = |inspected: &Value| inspected["memory"]["on_disk"].as_u64().unwrap();
    let (small, large) = (on_disk(&inspected), on_disk(&whole));
    println!("the diff takes {small} bytes, its base {large}");
    assert!(small < large * 9 / 10, "{small} of {large}");
    let memory = &inspected["memory"];
    let count = |name: &str| memory[name].as_u64().unwrap();
    assert_eq!(
        count("stored") + count("zero") + count("inherited"),
        count("pages")
    );
    assert!(count("inherited") > 0);

    // Both ways of looking agree on how much differs.
    let differs = look(&agent, &["diff", &base, &thin, "--json"]);
    assert!(!differs.success);
    assert_eq!(
        differs.json()["memory"]["pages"],
        count("stored") + count("zero")
    );
    let words = look(&agent, &["diff", &base, &thin]).stdout;
    assert!(words.contains("processor 0"), "{words}");
    assert!(look(&agent, &["diff", &thin, &thin]).success);
    assert!(look(&agent, &["verify", &thin]).success);
    let words = look(&agent, &["inspect", &thin]).stdout;
    for part in ["machine 0", "processor 0", "devices 0", &base, "of a base"] {
        assert!(words.contains(part), "{part} is not in {words}");
    }

    // Another agent pages it in from both files.
    let place = agent.terminate();
    let agent = place.start(DIFFS);
    works(&agent, THIN);
    // Its base's function goes; the base stays, and goes with it.
    let path = format!("/v1/functions/{function}");
    assert_eq!(agent.http("DELETE", &path, &[], b"").status, 204);
    assert!(folder(&agent, &base).exists());
    let place = agent.terminate();
    let agent = place.start("");
    works(&agent, THIN);
    let path = format!("/v1/functions/{THIN}");
    assert_eq!(agent.http("DELETE", &path, &[], b"").status, 204);
    assert!(!folder(&agent, &thin).exists());
    assert!(!folder(&agent, &base).exists());
}

fn base_function(agent: &Agent, base: &str) -> String {
    let names = agent.function_names();
    let name = names.iter().find(|name| snapshot_id(agent, name) == base);
    name.unwrap().clone()
}

#[test]
fn a_damaged_snapshot_is_named_by_verify_and_what_cannot_be_found_says_what_to_do() {
    let (place, _turn) = own_place();
    let agent = place.start("");
    let id = snapshot_id(&agent, TOUR);
    let path = folder(&agent, &id);
    let whole = look(&agent, &["verify", path.to_str().unwrap(), "--json"]);
    assert_eq!(whole.json(), json!({"ok": true, "damage": []}));

    let state = path.join("state");
    let bytes = fs::read(&state).unwrap();
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&state, damaged).unwrap();
    let verified = look(&agent, &["verify", &id, "--json"]);
    assert!(!verified.success);
    let damage = verified.json()["damage"][0].as_str().unwrap().to_owned();
    assert!(damage.contains("section `state: "), "{damage}");
    look(&agent, &["verify", &id]).refuses("section `state: ");
    fs::write(&state, bytes).unwrap();

    fs::write(path.join("memory"), b"short").unwrap();
    look(&agent, &["verify", &id]).refuses("section `memory`");
    look(&agent, &["inspect", "no-such"]).refuses("--state-dir");
}
