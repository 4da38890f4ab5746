//! A real kernel in a real machine: boot, snapshot, restore, reset.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use snapback_proto::CONTROL_VERSION;
use snapback_proto::control::{
    self, CONTROL_FD, KVM_FD, Machine, Reply, USERFAULTFD_FD, VmmMessage,
};

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

fn open(path: &str) -> OwnedFd {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
        .into()
}

fn spawn() -> (Child, OwnedFd) {
    let (ours, theirs) = pair(SocketType::SEQPACKET);
    let child = Command::new(env!("CARGO_BIN_EXE_snapback-vmm"))
        .stdin(Stdio::null())
        .fd_mappings(vec![
            FdMapping {
                parent_fd: theirs,
                child_fd: CONTROL_FD,
            },
            FdMapping {
                parent_fd: open("/dev/kvm"),
                child_fd: KVM_FD,
            },
            FdMapping {
                parent_fd: open("/dev/userfaultfd"),
                child_fd: USERFAULTFD_FD,
            },
        ])
        .unwrap()
        .spawn()
        .unwrap();
    (child, ours)
}

fn asset(name: &str) -> File {
    let dir = PathBuf::from(std::env::var_os("SNAPBACK_ASSETS").expect("SNAPBACK_ASSETS"));
    File::open(dir.join(name)).unwrap()
}

fn ask(socket: &OwnedFd, command: control::Command, fds: &[&dyn AsFd]) -> Reply {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    control::send(socket, &command, &fds).unwrap();
    loop {
        match control::receive::<VmmMessage>(socket).unwrap().0 {
            VmmMessage::Reply(reply) => return reply,
            VmmMessage::Event(event) => println!("event {event:?}"),
        }
    }
}

#[test]
fn a_kernel_boots_and_writes_to_the_serial_line() {
    let (mut child, socket) = spawn();
    let machine = Machine {
        control_version: CONTROL_VERSION,
        memory_mib: 128,
        vcpus: 1,
    };
    let reply = ask(&socket, control::Command::Prepare(machine), &[]);
    println!("{reply:?}");
    let memory = snapback_vmm::sys::memfd::create("guest", 128 << 20).unwrap();
    let (mut serial, serial_in) = std::io::pipe().unwrap();
    let (_channel, theirs) = pair(SocketType::STREAM);
    let line = "console=ttyS0 reboot=k panic=-1 earlyprintk=ttyS0".to_owned();
    let reply = ask(
        &socket,
        control::Command::Boot {
            command_line: line,
            disks: 0,
        },
        &[
            &memory,
            &asset("vmlinux"),
            &asset("guest-init.cpio"),
            &serial_in,
            &theirs,
        ],
    );
    println!("{reply:?}");
    drop(serial_in);
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_secs(12));
        drop(socket);
    });
    let mut text = Vec::new();
    serial.read_to_end(&mut text).unwrap();
    println!("{}", String::from_utf8_lossy(&text));
    child.wait().unwrap();
}
