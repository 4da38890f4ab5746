//! Processors that functions ask for, and hosts that do not have them.

use std::fs;

use serde_json::json;

use crate::harness::{TOUR, own_place, tour_code};

#[test]
fn a_function_gets_the_processor_that_it_asks_for_or_is_refused_with_what_is_missing() {
    let (place, _turn) = own_place();
    let agent = place.start("");
    let template = ["--timeout", "60", "--cpu-template"];
    let created = agent.create(
        "old",
        &tour_code(),
        &[&template[..], &["x86-64-v2"]].concat(),
    );
    assert!(created.success, "{created:?}\n{}", agent.place().log());
    let function = agent.function("old");
    assert_eq!(function["cpu_template"], "x86-64-v2");
    assert_eq!(agent.call("old", &json!({"do": "find"})), json!([]));
    let id = function["snapshot"].as_str().unwrap();
    let path = agent.place().state().join("snapshots").join(id);
    let manifest = fs::read_to_string(path.join("snapshot.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["machine"]["template"], "x86-64-v2");
    let features = manifest["cpu"]["features"].as_array().unwrap();
    assert!(features.contains(&json!("sse4_2")), "{features:?}");
    assert!(!features.contains(&json!("avx")), "{features:?}");

    let host = fs::read_to_string("/proc/cpuinfo").unwrap();
    if !host.contains(" avx512f ") {
        let refused = agent.create(
            "new",
            &tour_code(),
            &[&template[..], &["x86-64-v4"]].concat(),
        );
        refused.refuses("this host's processor lacks: ");
        refused.refuses("avx512f");
    }
    let refused = agent.create(
        "none",
        &tour_code(),
        &[&template[..], &["x86-64-v9"]].concat(),
    );
    refused.refuses("x86-64-v2");
}

#[test]
fn a_snapshot_that_needs_a_feature_which_this_host_lacks_is_refused_by_its_name() {
    let (place, _turn) = own_place();
    let agent = place.start("");
    let id = agent.function(TOUR)["snapshot"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = agent
        .place()
        .state()
        .join("snapshots")
        .join(id)
        .join("snapshot.json");
    let text = fs::read_to_string(&path).unwrap();
    // Of a processor that is no longer made.
    let needs = text.replacen("\"sse2\"", "\"sse2\",\n      \"avx512_4vnniw\"", 1);
    assert_ne!(needs, text);
    fs::write(&path, needs).unwrap();
    let response = agent.invoke(TOUR, &json!({"do": "find"}));
    assert_eq!(response.status, 500, "{response:?}");
    let message = response.json()["message"].to_string();
    assert!(
        message.contains("this host's processor lacks: avx512_4vnniw"),
        "{message}"
    );
    fs::write(&path, text).unwrap();
    assert_eq!(agent.call(TOUR, &json!({"do": "find"})), json!([]));
}
