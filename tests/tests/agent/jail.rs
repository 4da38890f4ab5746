//! What the process of a microVM is, seen from outside by the host's root while it works.

use std::collections::BTreeSet;
use std::fs;
use std::thread;

use serde_json::json;

use crate::harness::agent::Agent;
use crate::harness::processes::Process;
use crate::harness::{TOUR, given, shared};

/// Runs `look` at a microVM's process while a request runs in it.
fn while_a_request_runs(look: impl FnOnce(&Agent, Process)) {
    let agent = shared();
    let agent: &Agent = &agent;
    let (_, record) = agent.call_recorded(TOUR, &json!({"do": "find"}));
    thread::scope(|scope| {
        let event = json!({"do": "nap", "seconds": 3});
        let running = scope.spawn(move || agent.call_recorded(TOUR, &event).1);
        agent.wait_for_busy(1);
        let name = record["environment"].as_str().unwrap();
        let procs = agent.place().cgroup().join(name).join("cgroup.procs");
        let procs = fs::read_to_string(procs).unwrap();
        look(agent, Process(procs.trim().parse().unwrap()));
        assert!(!running.is_finished(), "it was looked at too late");
        assert_eq!(
            running.join().unwrap()["environment"],
            record["environment"]
        );
    });
}

#[test]
fn every_thread_is_without_privileges_and_under_a_filter() {
    while_a_request_runs(|_, process| {
        let mut names = BTreeSet::new();
        for thread in fs::read_dir(process.path("task")).unwrap() {
            let thread = thread.unwrap().file_name().into_string().unwrap();
            let file = format!("task/{thread}/status");
            let field = |name: &str| process.status(&file, name);
            names.insert(field("Name"));
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(field(set), "0000000000000000", "{set} of {thread}");
            }
            assert_eq!(field("NoNewPrivs"), "1", "{thread}");
            assert_eq!(field("Seccomp"), "2", "{thread}");
        }
        assert!(names.len() > 1, "{names:?}");
    });
}

#[test]
fn it_is_a_user_of_its_own_and_sees_no_other_process() {
    while_a_request_runs(|agent, process| {
        let machines = agent.machines();
        // This one and the blank ones.
        assert!(machines.len() > 1, "{machines:?}");
        let mut users = BTreeSet::new();
        for machine in &machines {
            for field in ["Uid", "Gid"] {
                let ids = machine.status("status", field);
                let ids: BTreeSet<u32> = ids.split('\t').map(|id| id.parse().unwrap()).collect();
                // Real, effective, saved and of the file system.
                assert_eq!(ids.len(), 1, "{field}: {ids:?}");
                assert!(ids.iter().all(|id| *id >= 0x7000_0000), "{field}: {ids:?}");
                users.extend(ids);
            }
            assert_eq!(machine.status("status", "Groups"), "");
            // It is the first and only process of its namespace.
            let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/pid")).unwrap();
            assert_ne!(namespace(&machine.0.to_string()), namespace("self"));
            let ids = machine.status("status", "NSpid");
            assert_eq!(ids, format!("{}\t1", machine.0));
        }
        assert_eq!(users.len(), machines.len(), "one user each: {users:?}");
        assert!(machines.contains(&process));
        let limits = process.read("limits");
        let mut lines = limits.lines();
        let threads = lines.find_map(|line| line.strip_prefix("Max processes"));
        let threads: Vec<_> = threads.unwrap().split_whitespace().take(2).collect();
        assert_eq!(threads, ["16", "16"]);
    });
}

#[test]
fn its_namespaces_are_its_own_and_empty() {
    while_a_request_runs(|_, process| {
        for kind in ["mnt", "net", "user", "ipc", "uts", "cgroup"] {
            let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/{kind}")).unwrap();
            assert_ne!(
                namespace(&process.0.to_string()),
                namespace("self"),
                "{kind}"
            );
        }
        // No user of the host is anybody there, and no file is there at all.
        assert_eq!(process.read("uid_map"), "");
        assert_eq!(process.read("gid_map"), "");
        assert_eq!(fs::read_dir(process.path("root/")).unwrap().count(), 0);
        // No address, no route: the loopback is down.
        assert!(process.read("net/route").lines().count() <= 1);
        assert!(!process.read("net/fib_trie").contains("127.0.0.1"));
    });
}

#[test]
fn it_has_no_file_open_but_what_it_was_given() {
    while_a_request_runs(|agent, process| {
        let root_fs = given("SNAPBACK_ASSETS").join("rootfs/python.erofs");
        let root_fs = fs::canonicalize(root_fs).unwrap();
        let code = agent.function(TOUR)["code"].as_str().unwrap().to_owned();
        let code = agent.place().state().join(format!("images/{code}.erofs"));
        let code = fs::canonicalize(code).unwrap();
        let mut given = BTreeSet::new();
        for entry in fs::read_dir(process.path("fd")).unwrap() {
            let number = entry.unwrap().file_name().into_string().unwrap();
            let target = fs::read_link(process.path("fd").join(&number)).unwrap();
            // Code that was uploaded once more since has replaced the file of its name.
            let target = match target.to_str().unwrap().strip_suffix(" (deleted)") {
                Some(path) if path == code.to_str().unwrap() => code.clone(),
                _ => target,
            };
            if !target.is_absolute() {
                // A socket, a pipe, an object of the kernel.
                continue;
            }
            let flags = process.read(&format!("fdinfo/{number}"));
            let flags = flags
                .lines()
                .find_map(|line| line.strip_prefix("flags:"))
                .unwrap();
            let writable = u32::from_str_radix(flags.trim(), 8).unwrap() & 0o3 != 0;
            let is_device = target.starts_with("/dev");
            assert!(
                is_device || !writable,
                "{} can be written",
                target.display()
            );
            let name = target.to_string_lossy();
            if !name.starts_with("/memfd:snapback-") {
                // Other than the snapshot's memory, which all its microVMs share.
                given.insert(target);
            }
        }
        let expected = ["/dev/null", "/dev/kvm", "/dev/userfaultfd"].map(Into::into);
        // Opened before the jail: which of its pages it has written.
        let own_pages = process.path("pagemap");
        assert_eq!(
            given,
            BTreeSet::from_iter(expected.into_iter().chain([root_fs, code, own_pages]))
        );
    });
}

#[test]
fn it_runs_in_a_cgroup_with_limits() {
    while_a_request_runs(|agent, process| {
        let path = process.read("cgroup");
        let name = path.trim().rsplit('/').next().unwrap().to_owned();
        let limit = |file: &str| {
            let file = agent.place().cgroup().join(&name).join(file);
            fs::read_to_string(file).unwrap().trim().to_owned()
        };
        // The guest's 128 MiB and the agent's allowance for the process itself.
        assert_eq!(limit("memory.max"), (192_u64 << 20).to_string());
        assert_eq!(limit("pids.max"), "64");
        assert_eq!(limit("cpu.weight"), "100");
    });
}

#[test]
fn its_program_has_no_tokio_in_it() {
    let contains_tokio = |program: &str| {
        let bytes = fs::read(given("SNAPBACK_BIN_DIR").join(program)).unwrap();
        bytes.windows(5).any(|window| window == b"tokio")
    };
    // The agent has it, and shows that it would be seen.
    assert!(contains_tokio("snapback"));
    assert!(!contains_tokio("snapback-vmm"));
}
