//! A VMM process driven by hand: what the agent does, in a few functions, over
//! the real control protocol, with a real guest.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a panic is how it fails"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use snapback_proto::CONTROL_VERSION;
use snapback_proto::control::{
    self, CONTROL_FD, FaultRange, KVM_FD, Machine, Reply, USERFAULTFD_FD, VmmMessage,
};
use snapback_proto::frame::{read_frame, write_frame};
use snapback_proto::guest::{GuestMessage, HostMessage, Init, Invoke, Resume};
use snapback_proto::ids::RequestId;
use snapback_vmm::sys::memfd;
use snapback_vmm::sys::uffd::{Fault, Uffd};

pub const MEMORY_MIB: u32 = 128;
const PAGE: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(60);

/// A VMM process and the agent's end of its control socket.
pub struct Vmm {
    pub child: Child,
    pub socket: OwnedFd,
}

impl Vmm {
    pub fn start() -> Self {
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
        let child = Command::new(env!("CARGO_BIN_EXE_snapback-vmm"))
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

    pub fn ask(&self, command: &control::Command, fds: &[&dyn AsFd]) -> (Reply, Vec<OwnedFd>) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        control::send(&self.socket, command, &fds).unwrap();
        match self.message() {
            (VmmMessage::Reply(reply), fds) => (reply, fds),
            (VmmMessage::Event(event), _) => panic!("{event:?} instead of a reply to {command:?}"),
        }
    }

    pub fn prepare(&self) -> (Uffd, Vec<FaultRange>) {
        let machine = Machine {
            control_version: CONTROL_VERSION,
            memory_mib: MEMORY_MIB,
            vcpus: 1,
        };
        match self.ask(&control::Command::Prepare(machine), &[]) {
            (Reply::Prepared { ranges }, mut fds) => {
                (Uffd::from_owned_fd(fds.remove(0)).unwrap(), ranges)
            }
            (other, _) => panic!("{other:?}"),
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

fn asset(name: &str) -> File {
    let dir = std::env::var_os("SNAPBACK_ASSETS").expect("SNAPBACK_ASSETS names the assets");
    File::open(PathBuf::from(dir).join(name)).unwrap()
}

/// The function that the tests' guest runs: it changes memory and files, then
/// tells how often it was called in this life of its memory. Or it looks at its
/// guest with an expression of the test.
const FUNCTION: &str = r#"
calls = 0

def handler(event, context):
    global calls
    calls += 1
    if "look" in event:
        return str(eval(event["look"]))
    with open("/tmp/trace", "a") as trace:
        trace.write("x" * event.get("bytes", 1))
    ballast = bytearray(event.get("dirty", 0) * 4096)
    for at in range(0, len(ballast), 4096):
        ballast[at] = 1
    return {"calls": calls, "trace": len(open("/tmp/trace").read())}
"#;

fn code_image() -> File {
    let dir = tempfile::tempdir().unwrap();
    let code = dir.path().join("code");
    std::fs::create_dir(&code).unwrap();
    std::fs::write(code.join("app.py"), FUNCTION).unwrap();
    let image = dir.path().join("code.erofs");
    let made = Command::new("mkfs.erofs")
        .args(["-T0", "--all-root", "--quiet"])
        .args([&image, &code])
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    File::open(image).unwrap()
}

/// A snapshot of a guest whose Python function waits for its first request.
pub struct Snapshot {
    pub state: File,
    pub memory: OwnedFd,
    pub disks: [File; 2],
}

pub fn snapshot() -> &'static Snapshot {
    static SNAPSHOT: OnceLock<Snapshot> = OnceLock::new();
    SNAPSHOT.get_or_init(boot_and_snapshot)
}

fn stream_pair() -> (UnixStream, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    (ours, theirs.into())
}

/// Where a guest's serial output goes: the test's own output.
fn serial() -> OwnedFd {
    let (mut reader, writer) = std::io::pipe().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut bytes) {
            let _ = std::io::stderr().write_all(&bytes[..count]);
        }
    });
    writer.into()
}

fn boot_and_snapshot() -> Snapshot {
    let vmm = Vmm::start();
    vmm.prepare();
    let memory = memfd::create("guest", u64::from(MEMORY_MIB) << 20).unwrap();
    let disks = [asset("rootfs/python.erofs"), code_image()];
    let (mut channel, theirs) = stream_pair();
    let line = "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 pci=off random.trust_cpu=on";
    let command = control::Command::Boot {
        command_line: line.to_owned(),
        disks: 2,
    };
    let (kernel, initramfs) = (asset("vmlinux"), asset("guest-init.cpio"));
    let fds: [&dyn AsFd; 7] = [
        &memory,
        &kernel,
        &initramfs,
        &serial(),
        &theirs,
        &disks[0],
        &disks[1],
    ];
    assert_eq!(vmm.ask(&command, &fds).0, Reply::Booted);
    drop(theirs);
    let (hello, _) = read_frame::<GuestMessage>(&mut channel).unwrap();
    assert!(matches!(hello, GuestMessage::Hello { .. }), "{hello:?}");
    let init = Init {
        function: "counter".to_owned(),
        version: "$LATEST".to_owned(),
        handler: "app.handler".to_owned(),
        memory_mib: MEMORY_MIB,
        environment: vec![],
        wall_clock_ns: wall_clock_ns(),
    };
    write_frame(&mut channel, &HostMessage::Init(init), b"").unwrap();
    loop {
        match read_frame::<GuestMessage>(&mut channel).unwrap() {
            (GuestMessage::Ready { .. }, _) => break,
            (GuestMessage::Log { .. }, text) => eprint!("{}", String::from_utf8_lossy(&text)),
            (other, payload) => panic!("{other:?} {}", String::from_utf8_lossy(&payload)),
        }
    }
    let state = tempfile::tempfile().unwrap();
    let (reply, _) = vmm.ask(&control::Command::Snapshot, &[&state]);
    assert!(matches!(reply, Reply::Snapshotted { .. }), "{reply:?}");
    // Pages that the guest never touched are holes: a restored machine asks for them.
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&memory, flags, 0, u64::from(MEMORY_MIB) << 20).unwrap();
    Snapshot {
        state,
        memory,
        disks,
    }
}

fn wall_clock_ns() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

/// A machine that stands at the snapshot or runs.
pub struct TestMachine {
    pub vmm: Vmm,
    pub faults: Arc<AtomicU64>,
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

pub fn restored(cache: Cache) -> TestMachine {
    let snapshot = snapshot();
    let vmm = Vmm::start();
    let (uffd, ranges) = vmm.prepare();
    let faults = Arc::new(AtomicU64::new(0));
    let memory = match cache {
        Cache::Warm => snapshot.memory.try_clone().unwrap(),
        Cache::Cold => {
            let cold = memfd::create("cold", u64::from(MEMORY_MIB) << 20).unwrap();
            let (source, into) = (
                File::from(snapshot.memory.try_clone().unwrap()),
                cold.try_clone(),
            );
            let (into, count) = (File::from(into.unwrap()), Arc::clone(&faults));
            std::thread::spawn(move || page_in(&uffd, &ranges, &source, &into, &count));
            cold
        }
    };
    let (reply, _) = restore_command(&vmm, &memory, &snapshot.state);
    assert_eq!(reply, Reply::Restored);
    TestMachine {
        vmm,
        faults,
        generation: 0,
    }
}

pub fn restore_command(vmm: &Vmm, memory: &OwnedFd, state: &File) -> (Reply, Vec<OwnedFd>) {
    let disks = &snapshot().disks;
    let fds: [&dyn AsFd; 5] = [memory, state, &serial(), &disks[0], &disks[1]];
    vmm.ask(&control::Command::Restore { disks: 2 }, &fds)
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

impl TestMachine {
    /// Lets the guest run on a fresh channel and waits for its confirmation.
    pub fn resume(&mut self) -> UnixStream {
        let (mut channel, theirs) = stream_pair();
        assert_eq!(
            self.vmm.ask(&control::Command::Run, &[&theirs]).0,
            Reply::Running
        );
        drop(theirs);
        self.generation += 1;
        let resume = Resume {
            generation: self.generation,
            entropy: [7; 64],
            wall_clock_ns: wall_clock_ns(),
        };
        write_frame(&mut channel, &HostMessage::Resume(resume), b"").unwrap();
        let (confirmed, _) = read_frame::<GuestMessage>(&mut channel).unwrap();
        assert_eq!(
            confirmed,
            GuestMessage::Resumed {
                generation: self.generation
            }
        );
        channel
    }

    /// Runs one request and returns the function's answer.
    pub fn request(&mut self, event: &str) -> String {
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
        loop {
            match read_frame::<GuestMessage>(&mut channel).unwrap() {
                (GuestMessage::Log { .. }, _) => {}
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
        match self.vmm.ask(&control::Command::Reset, &[]).0 {
            Reply::Reset(report) => report,
            other => panic!("{other:?}"),
        }
    }

    pub fn differences(&self) -> Vec<String> {
        match self.vmm.ask(&control::Command::Verify, &[]).0 {
            Reply::Verified { differences } => differences,
            other => panic!("{other:?}"),
        }
    }
}
