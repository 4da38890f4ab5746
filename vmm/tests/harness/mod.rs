//! A VMM process driven by hand: what the agent does, in a few functions, over
//! the real control protocol, with a real guest.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a panic is how it fails"
)]
#![allow(dead_code, unused_imports, reason = "each test program uses its part")]

mod console;
mod devices;
pub mod guest;

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use snapback_proto::CONTROL_VERSION;
use snapback_proto::control::{
    self, CONTROL_FD, FaultRange, KVM_FD, Machine, Reply, USERFAULTFD_FD, VmmMessage,
};
use snapback_proto::frame::{read_frame, write_frame};
use snapback_proto::guest::{GuestMessage, HostMessage, Identity, Invoke, Resume};
use snapback_proto::ids::RequestId;
use snapback_vmm::jail;
use snapback_vmm::sys::memfd;
use snapback_vmm::sys::uffd::{Fault, Uffd};

pub use console::Console;
pub use devices::{Extra, MAC, Scratch, begin, finish, result_of};
pub use guest::stream_pair;
pub use guest::{
    Booted, PATTERN, Shape, Snapshot, boot_and_snapshot, boot_root, boot_root_with, code_answer,
    execute, send_code, snapshot,
};

const PAGE: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(180);

/// A VMM process and the agent's end of its control socket.
pub struct Vmm {
    pub child: Child,
    pub socket: OwnedFd,
}

impl Vmm {
    /// Starts one that becomes a user of its own, as an agent does.
    pub fn start() -> Self {
        let identity = jail::Identity {
            uid: 64_321,
            gid: 64_322,
        };
        let mut program = Command::new(env!("CARGO_BIN_EXE_snapback-vmm"));
        Self::start_program(program.args(identity.arguments()))
    }

    /// Starts another program that speaks the same protocol.
    pub fn start_program(program: &mut Command) -> Self {
        let kind = SocketType::SEQPACKET;
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(PATIENCE),
        )
        .unwrap();
        let device = |path: &str| -> OwnedFd {
            File::options()
                .read(true)
                .write(true)
                .open(path)
                .unwrap()
                .into()
        };
        let child = program
            .stdin(Stdio::null())
            .fd_mappings(vec![
                FdMapping {
                    parent_fd: theirs,
                    child_fd: CONTROL_FD,
                },
                FdMapping {
                    parent_fd: device("/dev/kvm"),
                    child_fd: KVM_FD,
                },
                FdMapping {
                    parent_fd: device("/dev/userfaultfd"),
                    child_fd: USERFAULTFD_FD,
                },
            ])
            .unwrap()
            .spawn()
            .unwrap();
        Self { child, socket }
    }

    pub fn message(&self) -> (VmmMessage, Vec<OwnedFd>) {
        control::receive(&self.socket).unwrap()
    }

    /// Sends a command and does not wait.
    pub fn tell(&self, command: &control::Command, fds: &[&dyn AsFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        control::send(&self.socket, command, &fds).unwrap();
    }

    pub fn ask(&self, command: &control::Command, fds: &[&dyn AsFd]) -> (Reply, Vec<OwnedFd>) {
        self.tell(command, fds);
        match self.message() {
            (VmmMessage::Reply(reply), fds) => (reply, fds),
            (VmmMessage::Event(event), _) => panic!("{event:?} instead of a reply to {command:?}"),
        }
    }

    /// Prepares a machine with two read-only disks.
    pub fn prepare(&self, shape: Shape) -> (Uffd, Vec<FaultRange>) {
        self.prepare_for(shape, &control::Devices::read_only_disks(2))
    }

    pub fn prepare_for(&self, shape: Shape, devices: &control::Devices) -> (Uffd, Vec<FaultRange>) {
        let machine = Machine {
            control_version: CONTROL_VERSION,
            memory_mib: shape.memory_mib,
            vcpus: shape.vcpus,
            template: shape.template,
            disks: devices.disks.len().try_into().unwrap(),
            net: devices.net.is_some(),
        };
        match self.ask(&control::Command::Prepare(machine), &[]) {
            (Reply::Prepared { ranges }, mut fds) => {
                (Uffd::from_owned_fd(fds.remove(0)).unwrap(), ranges)
            }
            (other, _) => panic!("{other:?}"),
        }
    }

    pub fn reset(&self) -> control::ResetReport {
        match self.ask(&control::Command::RESET, &[]).0 {
            Reply::Reset(report) => report,
            other => panic!("{other:?}"),
        }
    }

    pub fn differences(&self) -> Vec<String> {
        match self.ask(&control::Command::Verify, &[]).0 {
            Reply::Verified { differences } => differences,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the process has ended; panics after a bounded time.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        for _ in 0..600 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the VMM process does not end");
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wall_clock_ns() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

/// A machine that stands at the snapshot or runs.
pub struct TestMachine {
    pub vmm: Vmm,
    /// Where guest memory lies in its process.
    pub ranges: Vec<FaultRange>,
    pub faults: Arc<AtomicU64>,
    /// The VMM's end of a vsock hub for the next run.
    pub hub: Cell<Option<OwnedFd>>,
    pub console: Console,
    generation: u64,
}

/// Whether the snapshot's pages are there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// All of them.
    Warm,
    /// None: each is faulted in.
    Cold,
}

/// The small machine.
pub fn restored(cache: Cache) -> TestMachine {
    restored_from(snapshot(), cache)
}

pub fn restored_from(snapshot: &Snapshot, cache: Cache) -> TestMachine {
    restored_with(snapshot, cache, &Extra::default())
}

/// As [`restored_from`], of a machine with further devices.
pub fn restored_with(snapshot: &Snapshot, cache: Cache, extra: &Extra<'_>) -> TestMachine {
    let shape = snapshot.shape;
    let vmm = Vmm::start();
    let (uffd, ranges) = vmm.prepare_for(shape, &extra.devices());
    let faults = Arc::new(AtomicU64::new(0));
    let memory = match cache {
        Cache::Warm => {
            fill_holes(&snapshot.memory, shape);
            snapshot.memory.try_clone().unwrap()
        }
        Cache::Cold => {
            let cold = memfd::create("cold", shape.memory()).unwrap();
            let (source, into) = (
                File::from(snapshot.memory.try_clone().unwrap()),
                cold.try_clone(),
            );
            let (into, count) = (File::from(into.unwrap()), Arc::clone(&faults));
            let ranges = ranges.clone();
            std::thread::spawn(move || page_in(&uffd, &ranges, &source, &into, &count));
            cold
        }
    };
    let (console, serial) = Console::new();
    let (reply, _) = restore_onto(&vmm, snapshot, extra, [&memory, &snapshot.state, &serial]);
    assert_eq!(reply, Reply::Restored);
    TestMachine {
        vmm,
        ranges,
        faults,
        hub: Cell::new(None),
        console,
        generation: 0,
    }
}

/// Pages that a guest never touched are holes, which would be asked for.
pub fn fill_holes(memory: &OwnedFd, shape: Shape) {
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(memory, flags, 0, shape.memory()).unwrap();
}

/// Restores `snapshot`, with other files in the place of its own.
pub fn restore_command(
    vmm: &Vmm,
    snapshot: &Snapshot,
    memory: &OwnedFd,
    state: &File,
) -> (Reply, Vec<OwnedFd>) {
    let serial = Console::new().1;
    restore_onto(vmm, snapshot, &Extra::default(), [memory, state, &serial])
}

/// Restores `snapshot` with the devices `extra` from memory, state and serial output.
pub fn restore_onto(
    vmm: &Vmm,
    snapshot: &Snapshot,
    extra: &Extra<'_>,
    files: [&dyn AsFd; 3],
) -> (Reply, Vec<OwnedFd>) {
    let mut fds = files.to_vec();
    fds.extend(extra.descriptors(&snapshot.disks));
    let command = control::Command::Restore {
        devices: extra.devices(),
        lazy: true,
        written: Vec::new(),
        whole: None,
        run: None,
    };
    vmm.ask(&command, &fds)
}

/// Fills in each page that is asked for, until the machine is gone.
fn page_in(uffd: &Uffd, ranges: &[FaultRange], source: &File, into: &File, count: &AtomicU64) {
    let mut filled = std::collections::HashSet::new();
    let mut faults = [Fault::default(); 16];
    loop {
        let Ok(got) = uffd.read_events(&mut faults) else {
            return;
        };
        if got == 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
        for fault in &faults[..got] {
            let range = ranges
                .iter()
                .find(|r| (r.address..r.address + r.length).contains(&fault.address))
                .unwrap();
            let page = fault.address / PAGE * PAGE;
            let offset = page - range.address + range.offset;
            if filled.insert(offset) {
                let mut bytes = [0; 4096];
                source.read_exact_at(&mut bytes, offset).unwrap();
                into.write_all_at(&bytes, offset).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
            if uffd.wake(page, PAGE).is_err() {
                return;
            }
        }
    }
}

/// Says what a restored guest hears first.
pub fn tell(channel: &mut UnixStream, generation: u64) {
    let resume = Resume {
        generation,
        entropy: [7; 64],
        wall_clock_ns: wall_clock_ns(),
        identity: Identity {
            hostname: "guest".to_owned(),
            ..Identity::default()
        },
    };
    write_frame(channel, &HostMessage::Resume(resume), b"").unwrap();
}

impl TestMachine {
    /// Lets the guest run on a fresh channel.
    pub fn run(&self) -> UnixStream {
        let (channel, theirs) = stream_pair();
        let hub = self.hub.take();
        let mut fds: Vec<&dyn AsFd> = vec![&theirs];
        fds.extend(hub.as_ref().map(|hub| -> &dyn AsFd { hub }));
        let run = control::Command::Run(control::Run {
            hub: hub.is_some(),
            barrier: false,
        });
        let (reply, _) = self.vmm.ask(&run, &fds);
        assert!(matches!(reply, Reply::Running { .. }), "{reply:?}");
        channel
    }

    /// Lets the guest run on a fresh channel and waits for its confirmation.
    pub fn resume(&mut self) -> UnixStream {
        let mut channel = self.run();
        self.generation += 1;
        tell(&mut channel, self.generation);
        let (confirmed, _) = read_frame::<GuestMessage>(&mut channel).unwrap();
        assert_eq!(
            confirmed,
            GuestMessage::Resumed {
                generation: self.generation
            }
        );
        channel
    }

    /// Begins one request and does not wait for the function's answer.
    pub fn begin(&mut self, event: &str) -> UnixStream {
        let mut channel = self.resume();
        let request = RequestId::from_random([9; 16]);
        let invoke = Invoke {
            request,
            deadline_ms: wall_clock_ns() / 1_000_000 + 60_000,
            function_arn: "arn:aws:lambda:local:000000000000:function:counter".to_owned(),
            trace_id: None,
            client_context: None,
            tenant_id: None,
        };
        write_frame(&mut channel, &HostMessage::Invoke(invoke), event.as_bytes()).unwrap();
        channel
    }

    /// Runs one request and returns the function's answer.
    pub fn request(&mut self, event: &str) -> String {
        let mut channel = self.begin(event);
        loop {
            match read_frame::<GuestMessage>(&mut channel).unwrap() {
                (
                    GuestMessage::Log { .. }
                    | GuestMessage::Holding { .. }
                    | GuestMessage::Delivered { .. },
                    _,
                ) => {}
                (GuestMessage::Response { .. }, answer) => {
                    return String::from_utf8(answer).unwrap();
                }
                (other, payload) => panic!("{other:?} {}", String::from_utf8_lossy(&payload)),
            }
        }
    }

    /// Runs one request in which the function evaluates a Python expression, and
    /// returns its value as text.
    pub fn look(&mut self, expression: &str) -> String {
        let event = serde_json::json!({ "look": expression }).to_string();
        serde_json::from_str(&self.request(&event)).unwrap()
    }

    pub fn reset(&self) -> control::ResetReport {
        self.vmm.reset()
    }

    pub fn differences(&self) -> Vec<String> {
        self.vmm.differences()
    }
}
