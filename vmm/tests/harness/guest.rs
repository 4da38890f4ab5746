//! The tests' guest: what it runs, and its snapshot.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use snapback_proto::control::{self, Reply};
use snapback_proto::cpu::CpuTemplate;
use snapback_proto::frame::{read_frame, write_frame};
use snapback_proto::guest::{GuestMessage, HostMessage, Init, LogFormat, VsockAccess};
use snapback_vmm::sys::memfd;

use super::console::Console;
use super::devices::Extra;
use super::{PATIENCE, Vmm, wall_clock_ns};

pub(super) fn asset(name: &str) -> File {
    let dir = std::env::var_os("SNAPBACK_ASSETS").expect("SNAPBACK_ASSETS names the assets");
    File::open(PathBuf::from(dir).join(name)).unwrap()
}

/// The function that the tests' guest runs: it changes memory and files, then
/// tells how often it was called in this life of its memory. Or it looks at its
/// guest with an expression of the test.
const FUNCTION: &str = r#"
import os
calls = 0
exec(os.environ.get("AT_INIT", ""))

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
    // As the agent packs a function (`agent/src/images/`).
    let code = dir.path().join("code");
    std::fs::create_dir_all(code.join("task")).unwrap();
    std::fs::write(code.join("task/app.py"), FUNCTION).unwrap();
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
    pub template: CpuTemplate,
}

impl Shape {
    pub const SMALL: Self = Self {
        memory_mib: 128,
        vcpus: 1,
        template: CpuTemplate::Host,
    };

    /// Guest memory, in bytes.
    pub fn memory(self) -> u64 {
        u64::from(self.memory_mib) << 20
    }
}

/// How to boot a machine.
pub struct Boot {
    pub shape: Shape,
    /// The VMM's end of a vsock hub.
    pub hub: Option<OwnedFd>,
    /// Python that the function runs while it is initialised.
    pub at_init: &'static str,
    /// What is done right before the snapshot is taken.
    pub before_snapshot: Box<dyn FnOnce()>,
}

impl From<Shape> for Boot {
    fn from(shape: Shape) -> Self {
        Self {
            shape,
            hub: None,
            at_init: "",
            before_snapshot: Box::new(|| ()),
        }
    }
}

/// A snapshot of a guest whose Python function waits for its first request.
pub struct Snapshot {
    pub shape: Shape,
    pub state: File,
    pub memory: OwnedFd,
    pub disks: [File; 2],
    /// What its scratch disks held.
    pub scratch: Vec<File>,
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

/// What boots: its initramfs, its second disk, and the end of its command line.
struct Software {
    initramfs: File,
    disk: File,
    arguments: String,
}

fn len(file: &File) -> u64 {
    file.metadata().unwrap().len()
}

/// A machine that was booted and runs.
pub struct Booted {
    pub vmm: Vmm,
    pub channel: UnixStream,
    pub console: Console,
    shape: Shape,
    memory: OwnedFd,
    disks: [File; 2],
    /// Sizes of its scratch disks.
    scratch: Vec<u64>,
}

impl Booted {
    fn start(shape: Shape, software: Software, extra: &Extra<'_>) -> Self {
        let vmm = Vmm::start();
        vmm.prepare_for(shape, &extra.devices());
        let memory = memfd::create("guest", shape.memory()).unwrap();
        let disks = [asset("rootfs/python.erofs"), software.disk];
        let (channel, theirs) = stream_pair();
        let (console, serial) = Console::new();
        let fixed = "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 pci=off random.trust_cpu=on tsc=reliable";
        let command = control::Command::Boot {
            command_line: format!("{fixed} {}", software.arguments),
            devices: extra.devices(),
            hub: extra.hub.is_some(),
        };
        let kernel = asset("vmlinux");
        let mut fds: Vec<&dyn AsFd> = vec![&memory, &kernel, &software.initramfs, &serial, &theirs];
        fds.extend(extra.descriptors(&disks));
        assert_eq!(vmm.ask(&command, &fds).0, Reply::Booted);
        Self {
            vmm,
            channel,
            console,
            shape,
            memory,
            disks,
            scratch: extra.scratch.iter().map(|disk| len(&disk.base)).collect(),
        }
    }

    /// Name and size of each disk, and the checksum of its last MiB, as the guest
    /// shall find them.
    pub fn disks(&self) -> Vec<serde_json::Value> {
        let disk = |(name, disk): (&str, &File)| {
            let size = len(disk);
            let mut bytes = vec![0; 1 << 20];
            disk.read_exact_at(&mut bytes, size - (1 << 20)).unwrap();
            serde_json::json!([name, size, crc32(&bytes)])
        };
        ["vda", "vdb"]
            .into_iter()
            .zip(&self.disks)
            .map(disk)
            .collect()
    }

    /// Takes the snapshot; the machine is gone afterwards.
    pub fn snapshot(self) -> Snapshot {
        let state = tempfile::tempfile().unwrap();
        let scratch: Vec<File> = self
            .scratch
            .iter()
            .map(|len| {
                let file = tempfile::tempfile().unwrap();
                file.set_len(*len).unwrap();
                file
            })
            .collect();
        let mut fds: Vec<&dyn AsFd> = vec![&state];
        fds.extend(scratch.iter().map(|file| -> &dyn AsFd { file }));
        let (reply, _) = self.vmm.ask(&control::Command::Snapshot, &fds);
        assert!(matches!(reply, Reply::Snapshotted { .. }), "{reply:?}");
        Snapshot {
            shape: self.shape,
            state,
            memory: self.memory,
            disks: self.disks,
            scratch,
        }
    }
}

/// Boots a guest that is a function, as an agent does, and waits for its ready point.
pub fn boot_and_snapshot(boot: impl Into<Boot>) -> Snapshot {
    let boot: Boot = boot.into();
    let shape = boot.shape;
    let software = Software {
        initramfs: asset("guest-init.cpio"),
        disk: code_image(),
        arguments: String::new(),
    };
    let extra = Extra {
        hub: boot.hub.as_ref(),
        ..Extra::default()
    };
    let mut booted = Booted::start(shape, software, &extra);
    drop(boot.hub);
    let channel = &mut booted.channel;
    let (hello, _) = read_frame::<GuestMessage>(channel).unwrap();
    assert!(matches!(hello, GuestMessage::Hello { .. }), "{hello:?}");
    let init = Init {
        function: "counter".to_owned(),
        version: "$LATEST".to_owned(),
        handler: "app.handler".to_owned(),
        memory_mib: shape.memory_mib,
        region: "local".to_owned(),
        execution_env: None,
        log_format: LogFormat::Text,
        log_level: None,
        // Its sockets are what some tests look at.
        vsock: VsockAccess::Allowed,
        environment: vec![("AT_INIT".to_owned(), boot.at_init.to_owned())],
        wall_clock_ns: wall_clock_ns(),
        ephemeral_storage_mib: shape.memory_mib / 2,
    };
    write_frame(channel, &HostMessage::Init(init), b"").unwrap();
    loop {
        match read_frame::<GuestMessage>(channel).unwrap() {
            (GuestMessage::Ready { .. }, _) => break,
            (GuestMessage::Log { .. }, text) => eprint!("{}", String::from_utf8_lossy(&text)),
            (other, payload) => panic!("{other:?} {}", String::from_utf8_lossy(&payload)),
        }
    }
    (boot.before_snapshot)();
    booted.snapshot()
}

/// The only process of a guest that the test has all to itself: it executes what
/// comes through the invocation channel, line by line, as root.
const ROOT_PROGRAM: &str = r#"
import ctypes, json, os, socket, struct, sys, threading, time, traceback
libc = ctypes.CDLL(None, use_errno=True)
for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/tmp")):
    libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None)
channel = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
channel.connect((2, PORT))
stream = channel.makefile("rw")
print("ready", file=stream, flush=True)
space = globals()
for line in stream:
    try:
        exec(json.loads(line), space)
        found = space.pop("answer", None)
    except BaseException:
        found = traceback.format_exc()
    if found is not None:
        print(json.dumps(str(found)), file=stream, flush=True)
"#;

/// Sectors of the root guest's second disk that are full of their own number, 64
/// times in 8 bytes. What it runs lies before them.
pub const PATTERN: Range<u64> = 128..4096;

/// Mounts `/dev` and runs the text on the second disk. The kernel cuts its command
/// line at spaces.
const ROOT_START: &str = "root=/dev/vda rootfstype=erofs ro init=/usr/bin/python3 -- -c \
    __import__('ctypes').CDLL(None).mount(b'd',b'/dev',b'devtmpfs',0,None);\
    exec(open('/dev/vdb','rb').read(65536).rstrip(bytes(1)))";

/// The checksum of zlib (RFC 1952, section 8), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            sum >> 1 ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

/// An archive without files: the kernel goes on to the root file system.
fn empty_initramfs() -> File {
    let mut file = tempfile::tempfile().unwrap();
    let zeros = "00000000".repeat(11);
    write!(file, "070701{zeros}0000000b00000000TRAILER!!!\0").unwrap();
    file.set_len(512).unwrap();
    file
}

/// Boots a guest whose only process is Python, as root, at the test's service.
pub fn boot_root(shape: Shape) -> Booted {
    boot_root_with(shape, &Extra::default())
}

/// As [`boot_root`], with further devices.
pub fn boot_root_with(shape: Shape, extra: &Extra<'_>) -> Booted {
    let mut disk = tempfile::tempfile().unwrap();
    let program = ROOT_PROGRAM.replace("PORT", &snapback_proto::CHANNEL_PORT.to_string());
    disk.write_all(program.as_bytes()).unwrap();
    for sector in PATTERN {
        disk.write_all_at(&sector.to_le_bytes().repeat(64), sector * 512)
            .unwrap();
    }
    let software = Software {
        initramfs: empty_initramfs(),
        disk,
        arguments: ROOT_START.to_owned(),
    };
    let booted = Booted::start(shape, software, extra);
    let ready = read_line(&mut &booted.channel);
    assert_eq!(ready, "ready", "{}", booted.console.text());
    booted
}

/// One line of a channel. Not buffered: what follows stays in the socket.
fn read_line(channel: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        channel.read_exact(&mut byte).unwrap();
        if byte == *b"\n" {
            return String::from_utf8(line).unwrap();
        }
        line.push(byte[0]);
    }
}

/// Sends lines of Python to a root guest without waiting for the end of them.
pub fn send_code(mut channel: &UnixStream, code: &str) {
    let line = serde_json::to_string(code).unwrap() + "\n";
    channel.write_all(line.as_bytes()).unwrap();
}

/// What the code said in `answer`, when it ends.
pub fn code_answer(mut channel: &UnixStream) -> String {
    serde_json::from_str(&read_line(&mut channel)).unwrap()
}

/// Has a root guest execute lines of Python; the value of `answer`, as text.
pub fn execute(channel: &UnixStream, code: &str) -> String {
    send_code(channel, code);
    code_answer(channel)
}
