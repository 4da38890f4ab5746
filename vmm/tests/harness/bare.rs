//! A guest without guest-init: its first process is Python as root, which runs what
//! the test sends over the invocation channel. For tests of devices that a function
//! must not touch.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use serde_json::Value;
use snapback_proto::control::{self, Devices, Disk, Net, Reply};
use snapback_vmm::sys::memfd;

use super::guest::{asset, serial, stream_pair};
use super::{PATIENCE, Shape, Vmm};

const SHAPE: Shape = Shape::SMALL;

/// The first process: each line of the channel is a program, whose `result` or error
/// goes back.
const FIRST_PROCESS: &str = r#"
import ctypes, fcntl, json, mmap, os, socket, struct, threading, time, traceback
libc = ctypes.CDLL(None, use_errno=True)
for kind, where in ((b"proc", b"/proc"), (b"sysfs", b"/sys"), (b"tmpfs", b"/tmp")):
    assert libc.mount(kind, where, kind, 0, 0) == 0, where

# Past the page cache: what the disk says is what the test sees.
def read(disk, at, length):
    page = mmap.mmap(-1, -(-length // 512) * 512)
    fd = os.open("/dev/" + disk, os.O_RDONLY | os.O_DIRECT)
    try:
        return page[:os.preadv(fd, [page], at)][:length]
    finally:
        os.close(fd)

def write(disk, at, data):
    page = mmap.mmap(-1, len(data))
    page[:] = data
    fd = os.open("/dev/" + disk, os.O_WRONLY | os.O_DIRECT)
    try:
        assert os.pwritev(fd, [page], at) == len(data)
    finally:
        os.close(fd)

# BLKDISCARD is 0x1277, BLKZEROOUT 0x127f.
def on_range(request, disk, at, length):
    fd = os.open("/dev/" + disk, os.O_WRONLY)
    try:
        fcntl.ioctl(fd, request, struct.pack("QQ", at, length))
    finally:
        os.close(fd)

def errno_of(work, *arguments):
    try:
        work(*arguments)
    except OSError as error:
        return error.errno

channel = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
channel.connect((2, CHANNEL_PORT))
lines = channel.makefile("r")
names = globals()
channel.sendall(b"ready\n")
while True:
    try:
        exec(json.loads(lines.readline()), names)
        answer = {"result": names.pop("result", None)}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    channel.sendall(json.dumps(answer).encode() + b"\n")
"#;

/// What stands behind a scratch disk.
pub struct Scratch {
    pub base: File,
    pub overlay: File,
    pub limit: u64,
}

impl Scratch {
    /// With an overlay in memory.
    pub fn over(base: &File, limit: u64) -> Self {
        let len = base.metadata().unwrap().len();
        Self {
            base: base.try_clone().unwrap(),
            overlay: memfd::create("overlay", len).unwrap().into(),
            limit,
        }
    }
}

/// The devices of a bare guest beside its system.
#[derive(Default)]
pub struct Extra<'a> {
    /// `vdc` and further.
    pub scratch: &'a [Scratch],
    /// The host's end of `eth0`.
    pub tap: Option<&'a OwnedFd>,
}

/// The guest's address on its link.
pub const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x2a];

/// A machine with such a guest.
pub struct Bare {
    pub vmm: Vmm,
    channel: Option<BufReader<UnixStream>>,
}

/// One of its snapshots.
pub struct BareSnapshot {
    system: [File; 2],
    memory: OwnedFd,
    state: File,
    /// What its scratch disks held.
    pub disks: Vec<File>,
}

/// Root file system, and the disk whose content the first process executes.
fn system() -> [File; 2] {
    let port = snapback_proto::CHANNEL_PORT.to_string();
    let mut program = FIRST_PROCESS.replace("CHANNEL_PORT", &port).into_bytes();
    program.resize(program.len().next_multiple_of(512), b'\n');
    let disk = tempfile::tempfile().unwrap();
    disk.write_all_at(&program, 0).unwrap();
    [asset("rootfs/python.erofs"), disk]
}

fn devices(extra: &Extra<'_>) -> Devices {
    let mut devices = Devices::read_only_disks(2);
    devices
        .disks
        .extend(extra.scratch.iter().map(|disk| Disk::Scratch {
            overlay_limit: disk.limit,
        }));
    devices.net = extra.tap.map(|_| Net { mac: MAC });
    devices
}

/// The descriptors of [`devices`], after `first`.
fn descriptors<'a>(
    first: &[&'a dyn AsFd],
    system: &'a [File; 2],
    extra: &'a Extra<'_>,
) -> Vec<&'a dyn AsFd> {
    let mut fds = first.to_vec();
    fds.extend(system.iter().map(|file| -> &dyn AsFd { file }));
    for disk in extra.scratch {
        fds.extend([&disk.base as &dyn AsFd, &disk.overlay]);
    }
    fds.extend(extra.tap.map(|tap| -> &dyn AsFd { tap }));
    fds
}

impl Bare {
    /// Boots a guest and takes its snapshot, after it did `before`.
    pub fn snapshot(extra: &Extra<'_>, before: &str) -> BareSnapshot {
        let vmm = Vmm::start();
        vmm.prepare(SHAPE);
        let memory = memfd::create("guest", SHAPE.memory()).unwrap();
        let system = system();
        let (ours, channel) = stream_pair();
        let run = "__import__('ctypes').CDLL(None).mount(b'd',b'/dev',b'devtmpfs',0,0)or(exec(open('/dev/vdb').read()))";
        let command = control::Command::Boot {
            command_line: format!(
                "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 pci=off random.trust_cpu=on \
                 root=/dev/vda rootfstype=erofs ro init=/usr/bin/python3.11 -- -c {run}"
            ),
            devices: devices(extra),
        };
        // An archive of nothing but padding.
        let (kernel, nothing) = (asset("vmlinux"), tempfile::tempfile().unwrap());
        nothing.set_len(512).unwrap();
        let serial = serial();
        let first: [&dyn AsFd; 5] = [&memory, &kernel, &nothing, &serial, &channel];
        let fds = descriptors(&first, &system, extra);
        assert_eq!(vmm.ask(&command, &fds).0, Reply::Booted);
        drop(channel);
        let mut guest = Self {
            vmm,
            channel: Some(BufReader::new(ours)),
        };
        assert_eq!(guest.line(), "ready\n");
        guest.run(before);
        let state = tempfile::tempfile().unwrap();
        let disks: Vec<File> = extra
            .scratch
            .iter()
            .map(|disk| {
                let file = tempfile::tempfile().unwrap();
                let len = disk.base.metadata().unwrap().len();
                file.set_len(len).unwrap();
                file
            })
            .collect();
        let mut fds: Vec<&dyn AsFd> = vec![&state];
        fds.extend(disks.iter().map(|disk| -> &dyn AsFd { disk }));
        let (reply, _) = guest.vmm.ask(&control::Command::Snapshot, &fds);
        assert!(matches!(reply, Reply::Snapshotted { .. }), "{reply:?}");
        BareSnapshot {
            system,
            memory,
            state,
            disks,
        }
    }

    /// Lets it run on a fresh channel.
    pub fn resume(&mut self) {
        let (ours, theirs) = stream_pair();
        let (reply, _) = self.vmm.ask(&control::Command::Run, &[&theirs]);
        assert_eq!(reply, Reply::Running);
        self.channel = Some(BufReader::new(ours));
    }

    /// Runs a program in the guest and returns its `result`.
    pub fn run(&mut self, program: &str) -> Value {
        self.begin(program);
        self.finish()
    }

    /// Starts a program in the guest.
    pub fn begin(&mut self, program: &str) {
        let mut line = serde_json::to_string(program).unwrap();
        line.push('\n');
        let channel = self.channel.as_mut().unwrap().get_mut();
        channel.write_all(line.as_bytes()).unwrap();
    }

    /// Waits for its `result`.
    pub fn finish(&mut self) -> Value {
        let line = self.line();
        let mut answer: Value = serde_json::from_str(&line).unwrap();
        if let Some(error) = answer.get("error") {
            panic!("in the guest: {}", error.as_str().unwrap());
        }
        answer["result"].take()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let channel = self.channel.as_mut().unwrap();
        channel.get_mut().set_read_timeout(Some(PATIENCE)).unwrap();
        channel.read_line(&mut line).unwrap();
        line
    }

    pub fn reset(&mut self) -> control::ResetReport {
        self.channel = None;
        self.vmm.reset()
    }
}

impl BareSnapshot {
    /// Puts it into a new machine, which stands still.
    pub fn restore(&self, extra: &Extra<'_>) -> Bare {
        let (machine, reply) = self.try_restore(extra);
        assert_eq!(reply, Reply::Restored);
        machine
    }

    /// As [`BareSnapshot::restore`], whatever the answer is.
    pub fn try_restore(&self, extra: &Extra<'_>) -> (Bare, Reply) {
        let vmm = Vmm::start();
        vmm.prepare(SHAPE);
        super::fill_holes(&self.memory, SHAPE);
        let command = control::Command::Restore {
            devices: devices(extra),
        };
        let serial = serial();
        let first: [&dyn AsFd; 3] = [&self.memory, &self.state, &serial];
        let fds = descriptors(&first, &self.system, extra);
        let (reply, _) = vmm.ask(&command, &fds);
        (Bare { vmm, channel: None }, reply)
    }
}
