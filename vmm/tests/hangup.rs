//! A VMM process ends with its agent, whatever its threads wait for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;
mod tiny;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use harness::{Shape, Vmm};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use snapback_proto::control::{Command, Devices, Run};
use snapback_vmm::sys::memfd;
use tiny::{Running, Tiny};

const TINY: Tiny = Tiny {
    shape: Shape::SMALL,
    counter: 0,
    msr: None,
};

/// Where the tiny guest's code is, in bytes; the page that it needs first.
const CODE: u64 = 0x10_0000;

/// Closes the agent's end of the control socket, as the end of the agent's process does,
/// and waits for the end of the VMM's. Says how long it took: that is a figure where
/// instructions are counted.
fn hang_up(vmm: &mut Vmm, when: &str) {
    let pid = Pid::from_child(&vmm.child);
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let (_, nobody) = std::io::pipe().unwrap();
    let begin = Instant::now();
    drop(std::mem::replace(&mut vmm.socket, OwnedFd::from(nobody)));
    let limit = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "it lives on");
    println!("{when}: ended {:?} after the agent", begin.elapsed());
}

/// Waits until a thread of the process waits for a missing page; its name.
fn waits_for_a_page(vmm: &Vmm) -> String {
    let tasks = format!("/proc/{}/task", vmm.child.id());
    for _ in 0..1000 {
        for thread in fs::read_dir(&tasks).unwrap() {
            let read = |file| fs::read_to_string(thread.as_ref().unwrap().path().join(file));
            if read("stack").is_ok_and(|stack| stack.contains("handle_userfault")) {
                return read("comm").unwrap().trim().to_owned();
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("nothing waits for a page");
}

/// A copy of a memory without the pages that `missing` names.
fn without(memory: &OwnedFd, missing: impl Fn(u64) -> bool) -> OwnedFd {
    let memory = File::from(memory.try_clone().unwrap());
    let copy = memfd::create("cold", TINY.shape.memory()).unwrap();
    let into = File::from(copy.try_clone().unwrap());
    let mut page = [0; 4096];
    for at in (0..TINY.shape.memory())
        .step_by(4096)
        .filter(|at| !missing(*at))
    {
        memory.read_exact_at(&mut page, at).unwrap();
        into.write_all_at(&page, at).unwrap();
    }
    copy
}

#[test]
fn it_ends_while_its_guest_runs() {
    let (memory, state) = TINY.snapshot();
    let mut machine = Running::restore(TINY.shape, memory, &state);
    assert_eq!(machine.wake(), TINY.line());
    hang_up(&mut machine.vmm, "while the guest ran");
}

#[test]
fn it_ends_while_it_waits_for_its_agents_next_word() {
    let (memory, state) = TINY.snapshot();
    let mut machine = Running::restore(TINY.shape, memory, &state);
    hang_up(&mut machine.vmm, "while the guest stood at its snapshot");
}

#[test]
fn it_ends_while_a_vcpu_waits_for_a_page_that_never_comes() {
    let (memory, state) = TINY.snapshot();
    let vmm = Vmm::start();
    // Somebody has the userfaultfd, and does nothing.
    let (_uffd, _) = vmm.prepare_for(TINY.shape, &Devices::default());
    let cold = without(&memory, |at| at == CODE);
    let mut machine = Running::restore_into(vmm, cold, &state);
    let (_channel, theirs) = harness::stream_pair();
    let run = Command::Run(Run::default());
    machine.vmm.ask(&run, &[&theirs]);
    let waiting = waits_for_a_page(&machine.vmm);
    assert!(waiting.starts_with("vcpu"), "{waiting}");
    hang_up(&mut machine.vmm, "while a vCPU waited for a page");
}
