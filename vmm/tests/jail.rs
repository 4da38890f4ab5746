//! A jailed process has nothing but its descriptors, its memory and the system
//! calls it needs. Each test starts `examples/jailed.rs` and looks at it, from
//! outside, as the host's root.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests count as code outside tests"
)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

const SIGSYS: i32 = 31;

fn helper(what: &str) -> Command {
    // target/PROFILE/deps/jail-HASH → target/PROFILE/examples/jailed
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples/jailed");
    assert!(
        path.exists(),
        "{} is not built: cargo build --examples",
        path.display()
    );
    let mut command = Command::new(path);
    command
        .arg(what)
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null());
    command
}

fn run(what: &str) -> Output {
    helper(what).output().unwrap()
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

/// A process that is in the jail and waits.
struct Waiting(Child);

impl Waiting {
    fn start(what: &str) -> Self {
        let mut child = helper(what)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line.trim_end(), "jailed");
        Self(child)
    }

    fn proc(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.proc(name)).unwrap()
    }

    fn status(&self, field: &str) -> String {
        let status = self.read("status");
        let prefix = format!("{field}:");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_jailed_process_has_no_privileges() {
    let jailed = Waiting::start("wait");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(jailed.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(jailed.status("NoNewPrivs"), "1");
    assert_eq!(jailed.status("Seccomp"), "2");
    assert_eq!(jailed.status("Seccomp_filters"), "2");
}

#[test]
fn a_jailed_process_shares_no_namespace_but_processes_and_time() {
    let jailed = Waiting::start("wait");
    for kind in ["mnt", "net", "ipc", "uts", "cgroup", "user"] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let theirs = fs::read_link(jailed.proc(&format!("ns/{kind}"))).unwrap();
        assert_ne!(own, theirs, "{kind}");
    }
    // Nobody is mapped into the user namespace.
    assert_eq!(jailed.read("uid_map"), "");
    assert_eq!(jailed.read("gid_map"), "");
}

#[test]
fn a_jailed_process_sees_an_empty_file_system() {
    let jailed = Waiting::start("wait");
    assert_eq!(fs::read_dir(jailed.proc("root/")).unwrap().count(), 0);
    let mounts = jailed.read("mounts");
    let fields: Vec<_> = mounts.lines().last().unwrap().split(' ').collect();
    assert_eq!(fields[1..3], ["/", "tmpfs"], "{mounts}");
    assert!(fields[3].starts_with("ro,"), "{mounts}");
}

#[test]
fn a_jailed_process_has_no_usable_network_interface() {
    let jailed = Waiting::start("wait");
    let interfaces = jailed.read("net/dev");
    let names: Vec<_> = interfaces
        .lines()
        .skip(2)
        .filter_map(|line| line.split(':').next())
        .map(str::trim)
        .collect();
    // Only the kernel's own, and the loopback is down: it has no address or route.
    assert!(
        names
            .iter()
            .all(|name| *name == "lo" || name.ends_with('0')),
        "{names:?}"
    );
    // At most the header.
    assert!(jailed.read("net/route").lines().count() <= 1);
    assert!(!jailed.read("net/fib_trie").contains("127.0.0.1"));
}

#[test]
fn a_jailed_process_cannot_leave_a_core_dump() {
    let jailed = Waiting::start("wait");
    let limits = jailed.read("limits");
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..]
            .split_whitespace()
            .take(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    assert_eq!(limit("Max open files"), ["1280", "1280"]);
}

#[test]
fn a_jailed_process_becomes_its_own_user() {
    let jailed = Waiting::start("wait-as-other");
    assert_eq!(jailed.status("Uid"), "64321\t64321\t64321\t64321");
    assert_eq!(jailed.status("Gid"), "64322\t64322\t64322\t64322");
    assert_eq!(jailed.status("Groups"), "");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(jailed.status(set), "0000000000000000", "{set}");
    }
}

#[test]
fn what_the_policy_does_not_allow_ends_the_process() {
    for what in [
        "open",
        "exec",
        "connect",
        "tcp",
        "terminal",
        "signal",
        "memfd",
        "blocking",
        "blocking-by-ioctl",
        "another-threads-place",
        "vcpu-thread",
    ] {
        let output = run(what);
        assert_eq!(text(&output), "jailed\n", "{what}");
        assert_eq!(
            output.status.signal(),
            Some(SIGSYS),
            "{what}: {:?}",
            output.status
        );
    }
}

#[test]
fn what_the_vmm_needs_still_works() {
    let output = run("work");
    assert_eq!(text(&output), "done\n", "{:?}", output.status);
    assert!(output.status.success());
}

#[test]
fn a_machine_can_be_built_inside() {
    let output = run("kvm");
    assert_eq!(text(&output), "done\n", "{:?}", output.status);
}

#[test]
fn the_jail_is_entered_once_and_with_one_thread() {
    assert_eq!(
        text(&run("twice")),
        "error: the process tried to enter its jail before\n"
    );
    assert_eq!(
        text(&run("with-thread")),
        "error: the process has 2 threads; the jail is entered with one\n"
    );
}

#[test]
fn every_layer_holds_without_the_others() {
    let output = run("landlock-only");
    assert!(
        text(&output).contains("Permission denied"),
        "{}",
        text(&output)
    );
    let output = run("namespaces-only");
    assert_eq!(text(&output), "entries 0, written false\n");
}
