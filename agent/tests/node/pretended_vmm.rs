//! A VMM process without a microVM: the control protocol on descriptor 3, and
//! guest-init's on the channels that it is given.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};
use snapback_proto::control::{
    CONTROL_FD, Command, Failure, Reply, ResetReport, USERFAULTFD_FD, VmmMessage, receive, send,
};
use snapback_proto::frame::{read_frame, write_frame};
use snapback_proto::guest::{
    ExitStatus, GuestMessage, HostMessage, Init, Invoke, LogStream, MAX_LOG_CHUNK, ReadyPoint,
};
use snapback_vmm::snapshot::{SectionKind, StateReader, StateWriter};
use snapback_vmm::sys::uffd::Uffd;

/// Serves until the agent goes away.
pub fn serve() {
    let me = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let inherited = |number| pidfd_getfd(&me, number, PidfdGetfdFlags::empty()).unwrap();
    let control = inherited(CONTROL_FD);
    let uffd = Uffd::from_device(inherited(USERFAULTFD_FD).as_fd()).unwrap();
    // The script's shell sets one variable by itself.
    let foreign: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| name != "PWD")
        .collect();
    assert!(foreign.is_empty(), "inherited variables: {foreign:?}");
    let spoilt = Arc::new(AtomicBool::new(false));
    while let Ok((command, fds)) = receive::<Command>(&control) {
        let mut sent = Vec::new();
        let reply = match command {
            Command::Prepare(_) => {
                sent.push(uffd.as_fd());
                Reply::Prepared { ranges: Vec::new() }
            }
            Command::Boot { disks, .. } => boot(fds, disks),
            Command::Snapshot => snapshot(fds),
            Command::Restore { disks } => restore(&fds, disks),
            Command::Run => run(fds, &spoilt),
            Command::Reset if spoilt.load(Ordering::Relaxed) => Reply::Failed(Failure {
                operation: "reset".to_owned(),
                reason: "it is spoilt".to_owned(),
                section: None,
            }),
            Command::Reset => Reply::Reset(ResetReport {
                pages: 5,
                ..ResetReport::default()
            }),
            Command::Verify => Reply::Verified {
                differences: Vec::new(),
            },
        };
        send(&control, &VmmMessage::Reply(reply), &sent).unwrap();
    }
    // As the real one: whatever its threads do.
    std::process::exit(0);
}

fn boot(fds: Vec<OwnedFd>, disks: u8) -> Reply {
    let [memory, kernel, _initramfs, _console, channel, root, code] =
        <[OwnedFd; 7]>::try_from(fds).unwrap();
    assert_eq!(disks, 2);
    let text = |fd: OwnedFd| std::io::read_to_string(File::from(fd)).unwrap();
    assert_eq!(
        (text(kernel), text(root)),
        ("vmlinux".to_owned(), "rootfs/python.erofs".to_owned())
    );
    // An EROFS image's magic number, at its place.
    let mut magic = [0; 4];
    File::from(code).read_exact_at(&mut magic, 1024).unwrap();
    assert_eq!(magic, [0xe2, 0xe1, 0xf5, 0xe0]);
    File::from(memory).write_all_at(b"booted", 5 << 20).unwrap();
    std::thread::spawn(move || initialise(stream(channel)));
    Reply::Booted
}

fn snapshot(mut fds: Vec<OwnedFd>) -> Reply {
    let file = File::from(fds.remove(0));
    let mut writer = StateWriter::new();
    writer.section(SectionKind::Machine, 1, &7_u64).unwrap();
    writer.section(SectionKind::Devices, 1, &"none").unwrap();
    let written = writer.finish(&file).unwrap();
    Reply::Snapshotted {
        state_len: written.len,
    }
}

fn restore(fds: &[OwnedFd], disks: u8) -> Reply {
    assert_eq!((fds.len(), disks), (5, 2));
    let mut reader = StateReader::open(&fds[1]).unwrap();
    assert_eq!(reader.section::<u64>(SectionKind::Machine, 1).unwrap(), 7);
    // The snapshot's memory is everybody's: it must not be writable.
    assert!(rustix::io::pwrite(&fds[0], b"x", 0).is_err());
    Reply::Restored
}

fn run(mut fds: Vec<OwnedFd>, spoilt: &Arc<AtomicBool>) -> Reply {
    let channel = stream(fds.remove(0));
    let spoilt = Arc::clone(spoilt);
    std::thread::spawn(move || answer(channel, &spoilt));
    Reply::Running
}

fn stream(fd: OwnedFd) -> UnixStream {
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false).unwrap();
    stream
}

fn initialise(mut channel: UnixStream) {
    let hello = GuestMessage::Hello {
        release: "pretended".to_owned(),
    };
    write_frame(&mut channel, &hello, b"").unwrap();
    let (message, _) = read_frame::<HostMessage>(&mut channel).unwrap();
    let HostMessage::Init(Init {
        function,
        handler,
        environment,
        ..
    }) = message
    else {
        panic!("not Init")
    };
    assert!(!function.is_empty() && handler == "app.handler");
    let log = GuestMessage::Log {
        stream: LogStream::Stdout,
    };
    write_frame(&mut channel, &log, b"initialising\n").unwrap();
    if environment.iter().any(|(name, _)| name == "FAIL_INIT") {
        let error_type = "Runtime.ImportModuleError".to_owned();
        let body = json!({"errorType": error_type, "errorMessage": "no module"}).to_string();
        let failed = GuestMessage::InitFailed { error_type };
        write_frame(&mut channel, &failed, body.as_bytes()).unwrap();
    } else {
        write_frame(
            &mut channel,
            &GuestMessage::Ready {
                at: ReadyPoint::Next,
            },
            b"",
        )
        .unwrap();
    }
    // The stream stays open until the process ends.
    std::mem::forget(channel);
}

fn answer(mut channel: UnixStream, spoilt: &AtomicBool) {
    let (message, _) = read_frame::<HostMessage>(&mut channel).unwrap();
    let HostMessage::Resume(resume) = message else {
        panic!("not Resume")
    };
    assert_ne!(resume.entropy, [0; 64]);
    let resumed = GuestMessage::Resumed {
        generation: resume.generation,
    };
    write_frame(&mut channel, &resumed, b"").unwrap();
    let (message, event) = read_frame::<HostMessage>(&mut channel).unwrap();
    let HostMessage::Invoke(Invoke { request, .. }) = message else {
        panic!("not Invoke")
    };
    let event: Value = serde_json::from_slice(&event).unwrap();
    let failed = json!({"errorType": "ValueError", "errorMessage": "no"}).to_string();
    if event["chatty"] == true {
        let log = GuestMessage::Log {
            stream: LogStream::Stderr,
        };
        for _ in 0..64 {
            write_frame(&mut channel, &log, &[b'\n'; MAX_LOG_CHUNK]).unwrap();
        }
    }
    match event["do"].as_str() {
        Some("raise") => {
            let message = GuestMessage::Failed {
                request,
                error_type: Some("ValueError".to_owned()),
            };
            return write_frame(&mut channel, &message, failed.as_bytes()).unwrap();
        }
        Some("exit") => {
            let message = GuestMessage::RuntimeExited {
                request,
                status: ExitStatus::Code(1),
            };
            return write_frame(&mut channel, &message, b"").unwrap();
        }
        Some("sleep") => std::thread::sleep(Duration::from_secs(3600)),
        Some("nap") => std::thread::sleep(Duration::from_millis(700)),
        Some("die") => std::process::exit(1),
        Some("babble") => return channel.write_all(&[b'?'; 64]).unwrap(),
        Some("spoil") => spoilt.store(true, Ordering::Relaxed),
        _ => {}
    }
    let body = json!({"event": event, "generation": resume.generation}).to_string();
    let content_type = "application/json".to_owned();
    let message = GuestMessage::Response {
        request,
        content_type,
    };
    write_frame(&mut channel, &message, body.as_bytes()).unwrap();
}
