//! The tests' guest: what it runs, and its snapshot.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use snapback_proto::control::{self, Devices, Reply};
use snapback_proto::frame::{read_frame, write_frame};
use snapback_proto::guest::{GuestMessage, HostMessage, Init};
use snapback_vmm::sys::memfd;

use super::{PATIENCE, Vmm, wall_clock_ns};

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

/// A machine to boot.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub memory_mib: u32,
    pub vcpus: u8,
}

impl Shape {
    pub const SMALL: Self = Self {
        memory_mib: 128,
        vcpus: 1,
    };

    /// Guest memory, in bytes.
    pub fn memory(self) -> u64 {
        u64::from(self.memory_mib) << 20
    }
}

/// A snapshot of a guest whose Python function waits for its first request.
pub struct Snapshot {
    pub shape: Shape,
    pub state: File,
    pub memory: OwnedFd,
    pub disks: [File; 2],
}

/// The one of the small machine, made once.
pub fn snapshot() -> &'static Snapshot {
    static SNAPSHOT: OnceLock<Snapshot> = OnceLock::new();
    SNAPSHOT.get_or_init(|| boot_and_snapshot(Shape::SMALL))
}

pub fn stream_pair() -> (UnixStream, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    (ours, theirs.into())
}

/// Where a guest's serial output goes: the test's own output.
pub fn serial() -> OwnedFd {
    let (mut reader, writer) = std::io::pipe().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut bytes) {
            let _ = std::io::stderr().write_all(&bytes[..count]);
        }
    });
    writer.into()
}

pub fn boot_and_snapshot(shape: Shape) -> Snapshot {
    let vmm = Vmm::start();
    vmm.prepare(shape);
    let memory = memfd::create("guest", shape.memory()).unwrap();
    let disks = [asset("rootfs/python.erofs"), code_image()];
    let (mut channel, theirs) = stream_pair();
    let line = "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 pci=off random.trust_cpu=on";
    let command = control::Command::Boot {
        command_line: line.to_owned(),
        devices: Devices::read_only_disks(2),
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
        memory_mib: shape.memory_mib,
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
    Snapshot {
        shape,
        state,
        memory,
        disks,
    }
}
