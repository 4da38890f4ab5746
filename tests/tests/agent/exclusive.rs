//! One agent at a time: on a socket, on a state directory, on a cgroup.

use serde_json::json;

use crate::harness::cli::client;
use crate::harness::place::Place;
use crate::harness::{TOUR, own_place, shared};

#[test]
fn a_second_agent_on_the_same_socket_is_refused_and_the_first_goes_on() {
    let agent = shared();
    let place = agent.place();
    let words = format!("another agent uses {}", place.socket().display());
    // With the same state, and with one of its own.
    place
        .refused_agent(&place.socket(), place.cgroup())
        .refuses(&words);
    let other = Place::new();
    other
        .refused_agent(&place.socket(), other.cgroup())
        .refuses(&words);
    assert_eq!(agent.call(TOUR, &json!({"do": "find"})), json!([]));
}

#[test]
fn a_second_agent_on_the_same_state_is_refused_and_the_first_goes_on() {
    let agent = shared();
    let place = agent.place();
    let socket = place.folder().join("other.sock");
    let words = format!("another agent uses {}", place.state().display());
    let (_, before) = agent.call_recorded(TOUR, &json!({"do": "find"}));
    place.refused_agent(&socket, place.cgroup()).refuses(&words);
    assert!(
        !socket.exists(),
        "a socket that nobody serves is left behind"
    );
    // Its environment is the one that it had: nobody cleaned up under it.
    let (_, after) = agent.call_recorded(TOUR, &json!({"do": "find"}));
    assert_eq!(after["environment"], before["environment"]);
}

#[test]
fn a_second_agent_on_the_same_cgroup_is_refused_and_the_first_goes_on() {
    let agent = shared();
    let (_, before) = agent.call_recorded(TOUR, &json!({"do": "find"}));
    let other = Place::new();
    let cgroup = agent.place().cgroup();
    let words = format!("another agent uses the cgroup {}", cgroup.display());
    other.refused_agent(&other.socket(), cgroup).refuses(&words);
    let (_, after) = agent.call_recorded(TOUR, &json!({"do": "find"}));
    assert_eq!(after["environment"], before["environment"]);
}

#[test]
fn the_socket_of_an_agent_that_was_killed_is_taken_over() {
    let (place, _turn) = own_place();
    let place = place.start("").kill();
    assert!(place.socket().exists());
    let list = ["function", "list"];
    client(&place.socket(), &list, b"").refuses("there is no agent at");
    let agent = place.start("");
    assert!(agent.cli(&list).stdout.contains(TOUR));
}
