//! Machines of one snapshot share a Node.js process's past, and no random number.

use std::collections::HashSet;
use std::thread;

use serde_json::{Value, json};

use crate::shared::with;

#[test]
fn nodejs_in_two_machines_of_one_snapshot_draws_different_random_numbers() {
    let agent = &with("node-tour").agent;
    let draw = |pause: u32| agent.call("node-tour", &json!({"do": "draw", "pause": pause}));
    // Two machines at a time, and each again after its reset.
    let mut drawn: Vec<Value> = Vec::new();
    for _ in 0..2 {
        drawn.extend(thread::scope(|scope| {
            let requests: Vec<_> = (0..2).map(|_| scope.spawn(|| draw(3000))).collect();
            // Neither is over before the other has begun.
            agent.wait_for_busy(2);
            let drawn = requests.into_iter().map(|request| request.join().unwrap());
            drawn.collect::<Vec<_>>()
        }));
    }
    // What the snapshot's own process drew comes from nobody again, either.
    let born = drawn[0]["born"].clone();
    assert!(drawn.iter().all(|one| one["born"] == born), "{drawn:?}");
    drawn.push(born);
    for place in [
        "/random",
        "/bytes",
        "/uuid",
        "/webUuid",
        "/webValues",
        "/int",
        "/key",
        "/tls/random",
        "/tls/session",
    ] {
        let values: Vec<_> = drawn.iter().map(|one| one.pointer(place)).collect();
        assert!(
            values.iter().all(|value| value.is_some_and(|v| *v != "")),
            "{place}"
        );
        let different: HashSet<_> = values.iter().map(|v| v.unwrap().to_string()).collect();
        assert_eq!(different.len(), drawn.len(), "{place}: {drawn:?}");
    }
}
