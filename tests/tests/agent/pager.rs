//! The pager fails closed: when it dies, whatever needs it dies, and what cannot be had is
//! never replaced by zeroes.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::json;

use crate::harness::agent::{Agent, invocations};
use crate::harness::processes::Process;
use crate::harness::{LIMIT, NO_BLANKS, TOUR, http, own_place, wait_for};

/// Every page that a guest touches is a fault, and nothing is brought before.
const LAZY: &str = "[pager]\nfill = \"lazy\"\nfill_kib = 4\nworking_sets = false\n";
/// As [`LAZY`], and no microVM is started before it is needed.
const LAZY_ALONE: &str =
    "[pools]\nblank = 0\n[pager]\nfill = \"lazy\"\nfill_kib = 4\nworking_sets = false\n";

/// A handle that becomes readable when the process has ended.
fn handle(process: Process) -> OwnedFd {
    let pid = Pid::from_raw(process.0.try_into().unwrap()).unwrap();
    pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

/// Kills the agent and returns how long each VMM process lived on.
fn kill(agent: Agent, machines: &[Process]) -> Vec<Duration> {
    let handles: Vec<_> = machines.iter().copied().map(handle).collect();
    assert!(machines.iter().all(|machine| machine.runs()));
    let start = Instant::now();
    agent.signal(Signal::KILL);
    let lives = handles.iter().map(|handle| {
        let limit = Timespec {
            tv_sec: LIMIT.as_secs().try_into().unwrap(),
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(handle, PollFlags::IN)];
        assert_eq!(
            poll(&mut fds, Some(&limit)).unwrap(),
            1,
            "a machine lives on"
        );
        start.elapsed()
    });
    let lives = lives.collect();
    agent.kill().wait_for_no_machine();
    lives
}

/// Says how long it took: what counts is measured on a host that counts instructions.
fn report(moment: &str, lives: &[Duration]) {
    println!("killed {moment}: the machines lived on for {lives:?}");
    assert!(!lives.is_empty());
    // Whatever the host is like: nothing waits for a bound of seconds.
    assert!(
        lives.iter().all(|life| *life < Duration::from_secs(5)),
        "{lives:?}"
    );
}

/// Calls the function from a thread of its own; nobody waits for the answer.
fn call(agent: &Agent, event: &serde_json::Value) {
    let (socket, event) = (agent.place().socket(), event.to_string());
    thread::spawn(move || {
        http::request(&socket, "POST", &invocations(TOUR), &[], event.as_bytes())
    });
}

/// Faults of the process that nobody has answered. A thread's own stack does not always tell:
/// KVM lets a worker of the kernel wait for a page, and halts the vCPU meanwhile, wherever the
/// guest takes interrupts ("async page faults").
fn open_faults(machine: Process) -> u64 {
    let Ok(files) = fs::read_dir(machine.path("fd")) else {
        return 0;
    };
    let is_userfaultfd = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|name| name.as_os_str() == "anon_inode:[userfaultfd]")
    };
    let files = files.flatten().map(|file| file.path());
    let counts = files.filter(is_userfaultfd).filter_map(|path| {
        let info = machine.path("fdinfo").join(path.file_name()?);
        let info = fs::read_to_string(info).ok()?;
        let total = info.lines().find_map(|line| line.strip_prefix("total:"))?;
        total.trim().parse::<u64>().ok()
    });
    counts.sum()
}

/// Threads of the process that wait for a missing page themselves.
fn threads_at_a_fault(machine: Process) -> Vec<String> {
    let threads = fs::read_dir(machine.path("task")).unwrap().flatten();
    let waiting = threads.filter_map(|thread| {
        let stack = fs::read_to_string(thread.path().join("stack")).ok()?;
        let name = fs::read_to_string(thread.path().join("comm")).ok()?;
        stack
            .contains("handle_userfault")
            .then(|| name.trim().to_owned())
    });
    waiting.collect()
}

/// Whether the processes come to a fault that stays open within two seconds: as long as a guest
/// runs, it comes to its next page.
fn come_to_a_fault(machines: &[Process]) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        thread::sleep(Duration::from_millis(20));
        if machines.iter().any(|machine| open_faults(*machine) > 0) {
            return true;
        }
    }
    false
}

#[test]
fn killed_while_a_vcpu_waits_for_a_page_the_pager_takes_its_machine_along() {
    let (place, _turn) = own_place();
    let agent = place.start(LAZY_ALONE);
    agent.call(TOUR, &json!({"do": "echo"}));
    // What it needs for this comes page by page, from an agent that stands still.
    call(&agent, &json!({"do": "leave"}));
    agent.wait_for_busy(1);
    let machines = agent.machines();
    wait_for("a fault that nobody answers", || {
        agent.signal(Signal::STOP);
        if come_to_a_fault(&machines) {
            return Some(());
        }
        agent.signal(Signal::CONT);
        thread::sleep(Duration::from_millis(10));
        None
    });
    for machine in &machines {
        let threads = threads_at_a_fault(*machine);
        // The guest's fault, not one of the device model on its behalf.
        assert!(
            threads.iter().all(|name| name.starts_with("vcpu")),
            "{threads:?}"
        );
    }
    report("while a vCPU waited for a page", &kill(agent, &machines));
}

#[test]
fn killed_between_two_faults_the_pager_takes_its_machines_along() {
    let (place, _turn) = own_place();
    let agent = place.start(LAZY);
    agent.call(TOUR, &json!({"do": "echo"}));
    call(&agent, &json!({"do": "spin"}));
    agent.wait_for_busy(1);
    // It spins, and there are blank ones as well.
    wait_for("blank machines", || {
        (agent.machines().len() >= 2).then_some(())
    });
    thread::sleep(Duration::from_secs(2));
    let machines = agent.machines();
    wait_for("a moment without a fault", || {
        let open: u64 = machines.iter().map(|machine| open_faults(*machine)).sum();
        (open == 0).then_some(())
    });
    report("between two faults", &kill(agent, &machines));
}

/// The memory files of snapshots that an agent has: how much of each is there, in pages.
fn filled(agent: &Agent) -> u64 {
    let folder = PathBuf::from(format!("/proc/{}/fd", agent.id()));
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let pages = files.filter_map(|file| {
        let name = fs::read_link(file.path()).ok()?;
        let name = name.to_str()?.to_owned();
        let metadata = fs::metadata(file.path()).ok()?;
        name.starts_with("/memfd:snapback-cache")
            .then(|| metadata.blocks() / 8)
    });
    pages.max().unwrap_or(0)
}

#[test]
fn killed_during_the_prefetch_the_pager_takes_its_machine_along() {
    let (place, _turn) = own_place();
    // The first run is recorded, and brings the rest: all of the memory is to be had.
    let agent = place.start(NO_BLANKS);
    agent.call(TOUR, &json!({"do": "leave"}));
    let folder = agent.place().state().join("snapshots");
    let id = agent.function(TOUR)["snapshot"]
        .as_str()
        .unwrap()
        .to_owned();
    wait_for("the working set", || {
        folder.join(&id).join("working-set").exists().then_some(())
    });
    let place = agent.terminate();
    let agent = place.start(NO_BLANKS);
    call(&agent, &json!({"do": "nap", "seconds": 30}));
    let mut pages = 0;
    wait_for("the middle of the prefetch", || {
        agent.signal(Signal::STOP);
        pages = filled(&agent);
        if pages > 0 && !agent.machines().is_empty() {
            return Some(());
        }
        agent.signal(Signal::CONT);
        None
    });
    let machines = agent.machines();
    println!("{pages} pages were there");
    report("during the prefetch", &kill(agent, &machines));
}

#[test]
fn a_page_that_is_damaged_ends_the_machine_that_needs_it_with_the_reason() {
    let (place, _turn) = own_place();
    let agent = place.start(LAZY_ALONE);
    let (_, before) = agent.call_recorded(TOUR, &json!({"do": "echo"}));
    // The hashes were checked when the snapshot was loaded, and now everything that was not
    // needed yet is gone: the file is as long as before, and reads as zeroes.
    let id = agent.function(TOUR)["snapshot"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = agent
        .place()
        .state()
        .join("snapshots")
        .join(id)
        .join("memory");
    let file = File::options().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(0).unwrap();
    file.set_len(length).unwrap();
    let response = agent.invoke(TOUR, &json!({"do": "leave"}));
    let words = String::from_utf8(response.body.clone()).unwrap();
    assert!(
        words.contains("a page of its memory could not be had"),
        "{response:?}"
    );
    assert!(words.contains("is damaged"), "{response:?}");
    agent.wait_for_poisoned("page", 1);
    assert_eq!(agent.poisoned("process"), 0);
    let environment = before["environment"].as_str().unwrap();
    wait_for("the end of the machine", || {
        (!agent.place().cgroup().join(environment).exists()).then_some(())
    });
}
