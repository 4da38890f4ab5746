//! An environment is trusted as long as everything about it is as it should be, and not a
//! moment longer. Each reason has a real cause here, and is counted.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::thread;

use rustix::fs::SeekFrom;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::agent::Agent;
use crate::harness::processes::Process;
use crate::harness::{NO_BLANKS, TOUR, own_place, wait_for};

const EVERY_RESET: &str = "[reset]\nverify_fraction = 1\n";
const NO_RESET: &str = "[reset]\nverify_fraction = 0\n";

/// How long a request naps during which something happens to its machine.
const NAP_S: u64 = 6;

/// The only VMM process that there is.
fn only_machine(agent: &Agent) -> Process {
    let machines = agent.machines();
    assert_eq!(machines.len(), 1, "{machines:?}");
    machines[0]
}

fn signal(process: Process, signal: Signal) {
    let pid = Pid::from_raw(process.0.try_into().unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Runs `meddle` while a request naps; the request's answer.
fn while_it_naps(agent: &Agent, meddle: impl FnOnce(Process)) -> Value {
    thread::scope(|scope| {
        let napping = scope.spawn(|| agent.invoke(TOUR, &json!({"do": "nap", "seconds": NAP_S})));
        agent.wait_for_busy(1);
        // The guest has confirmed, and the function runs, even in a machine that had to be made.
        thread::sleep(std::time::Duration::from_secs(NAP_S / 2));
        meddle(only_machine(agent));
        let response = napping.join().unwrap();
        let record = agent.record(&response);
        json!({"answer": response.json(), "record": record})
    })
}

/// Changes a page of guest memory that no guest has touched, behind the back of all that
/// keeps books of written pages.
fn change_a_page(machine: Process) {
    const FROM: u64 = 96 << 20;
    let maps = machine.read("maps");
    let cache = |line: &&str| line.contains("/memfd:snapback-") && line.contains(" rw-p ");
    let line = maps
        .lines()
        .find(|line| cache(line) && line.contains("cache"));
    let line = line
        .or_else(|| maps.lines().find(cache))
        .unwrap_or_else(|| panic!("{maps}"));
    let address = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    let inode = line.split_whitespace().nth(4).unwrap();
    let file = fs::read_dir(machine.path("fd")).unwrap().find_map(|entry| {
        use std::os::unix::fs::MetadataExt as _;
        let file = File::open(entry.unwrap().path()).ok()?;
        (file.metadata().ok()?.ino().to_string() == inode).then_some(file)
    });
    let file = file.unwrap_or_else(|| panic!("{maps}"));
    let hole = rustix::fs::seek(&file, SeekFrom::Hole(FROM)).unwrap();
    let memory = File::options()
        .write(true)
        .open(machine.path("mem"))
        .unwrap();
    memory.write_all_at(b"!", address + hole).unwrap();
}

#[test]
fn all_resets_are_verified_or_none() {
    let (place, _turn) = own_place();
    let agent = place.start(NO_RESET);
    for _ in 0..3 {
        let (_, record) = agent.call_recorded(TOUR, &json!({"do": "leave"}));
        assert_eq!(record["verified"], false);
    }
    assert_eq!(agent.metric("snapback_resets_total"), 3);
    assert_eq!(agent.metric("snapback_verified_total"), 0);
    let place = agent.terminate();

    let agent = place.start(EVERY_RESET);
    let mut environments = Vec::new();
    for _ in 0..5 {
        let (_, record) = agent.call_recorded(TOUR, &json!({"do": "leave"}));
        assert_eq!(record["verified"], true, "{record}");
        environments.push(record["environment"].clone());
    }
    environments.dedup();
    assert_eq!(environments.len(), 1);
    assert_eq!(agent.metric("snapback_resets_total"), 5);
    assert_eq!(agent.metric("snapback_verified_total"), 5);
    assert_eq!(agent.metric("snapback_mismatches_total"), 0);
    assert_eq!(agent.metric("snapback_restores_total"), 1);
}

#[test]
fn a_page_that_no_book_names_is_found_and_destroys_the_environment() {
    let (place, _turn) = own_place();
    // A complete memory has no page that can only be had by a fault.
    let complete = "[pager]\nfill = \"eager\"\nworking_sets = false\n";
    let agent = place.start(&format!("{EVERY_RESET}[pools]\nblank = 0\n{complete}"));
    agent.call_recorded(TOUR, &json!({"do": "find"}));
    let seen = while_it_naps(&agent, change_a_page);
    assert_eq!(
        seen["answer"]["napped"], NAP_S,
        "the caller has its answer: {seen}"
    );
    let destroyed = seen["record"]["destroyed"].as_str().unwrap_or_default();
    assert!(
        destroyed.contains("differs from its snapshot: memory page at"),
        "{seen}"
    );
    assert_eq!(agent.poisoned("mismatch"), 1);
    assert_eq!(agent.metric("snapback_mismatches_total"), 1);
    // The next one has another environment.
    let (found, record) = agent.call_recorded(TOUR, &json!({"do": "find"}));
    assert_eq!((found, &record["fresh"]), (json!([]), &json!(true)));
}

#[test]
fn a_process_that_is_gone_or_silent_is_counted_as_such_and_killed() {
    let (place, _turn) = own_place();
    let config = "[timeouts]\ncommand_ms = 5000\nreset_ms = 2000\n";
    let agent = place.start(&format!("{NO_RESET}{NO_BLANKS}{config}"));
    agent.call_recorded(TOUR, &json!({"do": "find"}));
    let seen = while_it_naps(&agent, |machine| signal(machine, Signal::KILL));
    assert_eq!(seen["answer"]["errorType"], "Sandbox.Failure", "{seen}");
    agent.wait_for_poisoned("process", 1);

    // It does not answer `Run`: no request reaches it.
    agent.call_recorded(TOUR, &json!({"do": "find"}));
    let machine = only_machine(&agent);
    signal(machine, Signal::STOP);
    let refused = agent.invoke(TOUR, &json!({"do": "find"}));
    assert_eq!(refused.status, 500, "{refused:?}");
    agent.wait_for_poisoned("resume", 1);
    wait_for("the machine's end", || (!machine.runs()).then_some(()));
}

#[test]
fn a_reset_or_a_comparison_that_takes_too_long_destroys_the_environment() {
    let (place, _turn) = own_place();
    let agent = place.start(&format!("{NO_RESET}{NO_BLANKS}[timeouts]\nreset_ms = 1\n"));
    let (dirtied, record) = agent.call_recorded(TOUR, &json!({"do": "dirty", "pages": 12_000}));
    assert_eq!(dirtied, 12_000);
    assert_eq!(record["reset"], Value::Null);
    assert_eq!(agent.poisoned("reset_timeout"), 1);
    let place = agent.terminate();

    let agent = place.start(&format!(
        "{EVERY_RESET}{NO_BLANKS}[timeouts]\nverify_ms = 1\n"
    ));
    let (_, record) = agent.call_recorded(TOUR, &json!({"do": "find"}));
    assert!(record["destroyed"].is_string(), "{record}");
    assert_eq!(agent.poisoned("verify"), 1);
    assert_eq!(agent.metric("snapback_mismatches_total"), 0);
}

fn assert_nothing_is_poisoned(agent: &Agent) {
    let text = String::from_utf8(agent.get("/metrics").body).unwrap();
    let poisoned: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("snapback_poisoned_total"))
        .collect();
    assert!(!poisoned.is_empty());
    assert!(
        poisoned.iter().all(|line| line.ends_with(" 0")),
        "{poisoned:?}"
    );
}

#[test]
fn a_request_over_the_page_budget_ends_its_microvm_and_is_no_doubt() {
    let (place, _turn) = own_place();
    let agent = place.start(&format!("{NO_BLANKS}[reset]\npage_budget = 50\n"));
    let mut environments = Vec::new();
    for calls in 1..=2 {
        let (_, record) = agent.call_recorded(TOUR, &json!({"do": "find"}));
        let why = record["destroyed"].as_str().unwrap();
        assert!(why.ends_with("and reset.page_budget is 50"), "{record}");
        assert_eq!(record["reset"], Value::Null);
        environments.push(record["environment"].clone());
        wait_for("the environment's end", || {
            let retired = agent.metric(r#"snapback_retired_total{reason="page_budget"}"#);
            (retired == calls).then_some(())
        });
    }
    assert_ne!(environments[0], environments[1]);
    assert_nothing_is_poisoned(&agent);
    let place = agent.terminate();

    // The default is far above what this function writes.
    let agent = place.start(NO_BLANKS);
    let (_, record) = agent.call_recorded(TOUR, &json!({"do": "find"}));
    assert_eq!(record["destroyed"], Value::Null, "{record}");
}

#[test]
fn nothing_is_poisoned_that_ends_for_want_of_work() {
    let (place, _turn) = own_place();
    let agent = place.start(&format!("{NO_BLANKS}[reset]\nin_place = false\n"));
    agent.call_recorded(TOUR, &json!({"do": "find"}));
    wait_for("the environment's end", || {
        let retired = agent.metric(r#"snapback_retired_total{reason="single_use"}"#);
        (retired == 1).then_some(())
    });
    assert_nothing_is_poisoned(&agent);
}
