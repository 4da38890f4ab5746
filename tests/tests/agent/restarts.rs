//! An agent ends, by itself or by force: its functions stay, nothing else does.

use std::thread;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::agent::{Agent, invocations};
use crate::harness::cli::client;
use crate::harness::http;
use crate::harness::processes::{environments_in, stray_machines};
use crate::harness::{NO_BLANKS, TOUR, own_place, tour_code, wait_for};

/// What was made when the function was initialised.
fn born(agent: &Agent) -> Value {
    agent.call(TOUR, &json!({"do": "facts"}))["born"].clone()
}

/// Checks that no function was booted in this place's agents' lives.
fn nothing_was_booted(agent: &Agent) {
    let log = agent.place().log();
    assert!(!log.contains("building"), "{log}");
    assert!(!log.contains("guest-init is up"), "{log}");
}

#[test]
fn functions_and_snapshots_survive_a_restart_without_booting_again() {
    let (place, _turn) = own_place();
    let agent = place.start("");
    let (names, function, first) = (agent.function_names(), agent.function(TOUR), born(&agent));
    let machines = agent.machines();
    assert!(!machines.is_empty());
    let place = agent.terminate();
    // An agent that ended has ended everything.
    assert!(!place.socket().exists());
    assert!(machines.iter().all(|machine| !machine.runs()));
    assert!(environments_in(place.cgroup()).is_empty());

    let agent = place.start("");
    assert_eq!(agent.function_names(), names);
    let mut after = agent.function(TOUR);
    // Told once it is in use.
    let mut before = function;
    for told in [&mut before, &mut after] {
        told.as_object_mut().unwrap().remove("memory");
    }
    assert_eq!(after, before);
    assert_eq!(born(&agent), first);
    nothing_was_booted(&agent);
}

#[test]
fn an_agent_killed_in_the_middle_of_a_request_leaves_its_functions_and_nothing_else() {
    let (place, _turn) = own_place();
    let agent = place.start("");
    let first = born(&agent);
    let cgroup = agent.place().cgroup().to_owned();
    let agent = thread::scope(|scope| {
        let place = agent.place();
        let socket = place.socket();
        let caller = scope.spawn(move || {
            let event = json!({"do": "nap", "seconds": 50}).to_string();
            let path = invocations(TOUR);
            http::request(&socket, "POST", &path, &[], event.as_bytes())
        });
        agent.wait_for_busy(1);
        let machines = agent.machines();
        assert!(!machines.is_empty());
        let place = agent.kill();
        // The caller is not left waiting.
        assert!(caller.join().unwrap().is_err());
        // The microVMs end by themselves, blank ones too: their agent's end is the end of
        // their control sockets.
        wait_for("the microVMs' end", || {
            machines.iter().all(|machine| !machine.runs()).then_some(())
        });
        place.wait_for_no_machine();
        assert_eq!(stray_machines(), []);
        // What a crash left behind: a socket and cgroups.
        assert!(place.socket().exists());
        assert!(environments_in(&cgroup).len() >= machines.len());
        place.start(NO_BLANKS)
    });
    assert!(environments_in(&cgroup).is_empty());
    assert_eq!(agent.machines(), []);
    assert_eq!(born(&agent), first);
    nothing_was_booted(&agent);
}

#[test]
fn an_agent_killed_while_it_creates_a_function_leaves_nothing_of_it() {
    let (place, _turn) = own_place();
    let agent = place.start(NO_BLANKS);
    let (names, snapshots) = (agent.function_names(), agent.place().entries("snapshots"));
    let place = thread::scope(|scope| {
        let socket = agent.place().socket();
        let caller = scope.spawn(move || {
            let code = tour_code();
            let arguments = [
                "function",
                "create",
                "half",
                "--code",
                code.to_str().unwrap(),
            ];
            let more = ["--runtime", "python3.11", "--handler", "app.handler"];
            client(&socket, &[&arguments[..], &more[..]].concat(), b"")
        });
        wait_for("a booting microVM", || agent.machines().first().copied());
        let place = agent.kill();
        assert!(!caller.join().unwrap().success);
        place.wait_for_no_machine();
        place
    });
    let agent = place.start("");
    assert_eq!(agent.function_names(), names);
    assert_eq!(agent.place().entries("snapshots"), snapshots);
    assert_eq!(agent.call(TOUR, &json!({"do": "find"})), json!([]));
}

#[test]
fn a_term_signal_lets_the_running_request_finish_and_admits_no_other() {
    let (place, _turn) = own_place();
    let agent = place.start("");
    let place = thread::scope(|scope| {
        let socket = agent.place().socket();
        let path = invocations(TOUR);
        let running = {
            let (socket, path) = (socket.clone(), path.clone());
            scope.spawn(move || {
                let event = json!({"do": "nap", "seconds": 4}).to_string();
                http::request(&socket, "POST", &path, &[], event.as_bytes())
            })
        };
        agent.wait_for_busy(1);
        agent.signal(Signal::TERM);
        wait_for("the agent's admission of its end", || {
            (agent.get("/readyz").status == 503).then_some(())
        });
        let late = agent.invoke(TOUR, &json!({}));
        assert_eq!(late.status, 503, "{late:?}");
        assert_eq!(late.header("x-amzn-errortype"), "ServiceException");
        assert!(!running.is_finished());
        let place = agent.wait_for_end();
        let answer = running.join().unwrap().unwrap();
        assert_eq!((answer.status, &answer.json()["napped"]), (200, &json!(4)));
        place
    });
    assert!(!place.socket().exists());
    assert!(environments_in(place.cgroup()).is_empty());
    let run = client(&place.socket(), &["function", "list"], b"");
    run.refuses("there is no agent at");
}
