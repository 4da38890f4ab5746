//! A function that does nothing, served by one machine: requests per second with a reset
//! after each, without, and in a machine that is restored for each.
//!
//! guest-init takes one request after the other without a reset in between if it is
//! told to resume each time, which the agent never does. So both ways do the same in
//! the guest, entropy and clock included; the difference is `Reset`, `Run`, and what a
//! guest that was put back does for the first time again: hooks of its runtime, and
//! whatever a program only does once. `reset/first_request` says how long such a request
//! takes the guest.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use snapback_proto::control::ResetReport;
use snapback_proto::frame::{FrameError, read_frame, write_frame};
use snapback_proto::guest::{
    GuestMessage, HostMessage, Identity, Init, Invoke, LogFormat, Resume, VsockAccess,
};
use snapback_proto::ids::RequestId;

use super::{ResetError, steps};
use crate::function::Function;
use crate::machine::{Link, Machine, Snapshot, Software, prepare};
use crate::progress;
use crate::report::{Report, Samples, milliseconds};
use crate::subjects;

/// Requests of one sample.
const BATCH: u32 = 10;
/// Samples of each row.
const BATCHES: u32 = 10;
const QUICK_BATCHES: u32 = 2;
/// Requests before the first sample.
const WARM_UP: u32 = 6;

/// Adds the rows of each runtime.
pub fn measure(
    options: &super::Options,
    link: &Link,
    report: &mut Report,
) -> Result<(), ResetError> {
    let folders = [
        ("python", subjects::python()?),
        ("provided", subjects::provided(&options.functions)),
    ];
    for (runtime, folder) in folders {
        progress::step(&format!("a function in {runtime} that does nothing"));
        let scratch = tempfile::tempdir().map_err(prepare("make a temporary directory"))?;
        let function = Function::load(&folder)?;
        let software = Software {
            vmm: options.bin_dir.join("snapback-vmm"),
            kernel: options.assets.join("vmlinux"),
            initramfs: options.assets.join("guest-init.cpio"),
            disks: vec![
                options.assets.join(format!("rootfs/{runtime}.erofs")),
                pack(&folder, scratch.path())?,
            ],
        };
        let snapshot = Snapshot::make(&software, link, |stream, console| {
            initialise(stream, &function)
                .map_err(|error| ResetError::Guest(format!("{error}; {}", console.text())))
        })?;
        let batches = if options.quick {
            QUICK_BATCHES
        } else {
            BATCHES
        };
        for reset in [true, false] {
            let machine = snapshot.restore(snapshot.blank()?)?;
            let samples = match reset {
                true => {
                    let lives = with_resets(&machine, batches)?;
                    let params = [("runtime", json!(runtime))];
                    report.add(lives.guest.row("reset/first_request", params.clone()));
                    steps::rows(report, &params, &lives.resets);
                    lives.rate
                }
                false => without(&machine, batches)?,
            };
            let params = [("runtime", json!(runtime)), ("reset", json!(reset))];
            report.add(samples.row("reset/throughput", params));
        }
        let samples = destroyed(&snapshot, batches)?;
        report.add(samples.row("reset/throughput_destroy", [("runtime", json!(runtime))]));
    }
    Ok(())
}

/// Requests per second of batches of `request`.
fn batches(
    count: u32,
    mut request: impl FnMut() -> Result<(), ResetError>,
) -> Result<Samples, ResetError> {
    for _ in 0..WARM_UP {
        request()?;
    }
    let mut samples = Samples::new("req/s");
    for _ in 0..count {
        let begin = Instant::now();
        for _ in 0..BATCH {
            request()?;
        }
        samples.push(f64::from(BATCH) / begin.elapsed().as_secs_f64());
    }
    Ok(samples)
}

/// What requests showed that had a reset after each.
struct Lives {
    rate: Samples,
    /// From the command that lets the guest run to its answer, in milliseconds.
    guest: Samples,
    resets: Vec<ResetReport>,
}

fn with_resets(machine: &Machine, count: u32) -> Result<Lives, ResetError> {
    let mut guest = Samples::new("ms");
    let mut resets = Vec::new();
    let rate = batches(count, || {
        let begin = Instant::now();
        machine.live(ask, |stream| {
            hear(stream)?;
            guest.push(milliseconds(begin.elapsed()));
            Ok::<_, ResetError>(())
        })?;
        resets.push(machine.reset()?);
        Ok(())
    })?;
    Ok(Lives {
        rate,
        guest,
        resets,
    })
}

fn without(machine: &Machine, count: u32) -> Result<Samples, ResetError> {
    let stream = machine.run()?;
    batches(count, || {
        ask(&stream)?;
        hear(&stream)
    })
}

/// The next machine's process is made within the time: somebody has to.
fn destroyed(snapshot: &Snapshot<'_>, count: u32) -> Result<Samples, ResetError> {
    batches(count, || {
        snapshot.live(snapshot.blank()?, ask, hear)?;
        Ok(())
    })
}

/// An image of a function's code, as the agent makes it.
fn pack(folder: &Path, scratch: &Path) -> Result<PathBuf, ResetError> {
    let (task, image) = (scratch.join("code/task"), scratch.join("code.erofs"));
    fs::create_dir_all(&task).map_err(prepare("make a directory for code"))?;
    let copy = || {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), task.join(entry.file_name()))?;
            }
        }
        Ok(())
    };
    copy().map_err(prepare(format!("copy {}", folder.display())))?;
    let packed = Command::new("mkfs.erofs")
        .args(["-T0", "--all-root", "--quiet"])
        .arg(&image)
        .arg(scratch.join("code"))
        .stdin(Stdio::null())
        .output()
        .map_err(prepare("run mkfs.erofs"))?;
    if packed.status.success() {
        return Ok(image);
    }
    let said = String::from_utf8_lossy(&packed.stderr).into_owned();
    Err(prepare("pack the function's code")(std::io::Error::other(said)).into())
}

fn wall_clock_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(0))
}

/// From the guest's first word to its function's ready point.
fn initialise(mut stream: &UnixStream, function: &Function) -> Result<(), ResetError> {
    expect(stream, |message| {
        matches!(message, GuestMessage::Hello { .. })
    })?;
    let init = Init {
        function: function.name.clone(),
        version: "$LATEST".to_owned(),
        handler: function.handler.clone(),
        memory_mib: crate::machine::MEMORY_MIB,
        ephemeral_storage_mib: crate::machine::MEMORY_MIB / 2,
        region: "local".to_owned(),
        execution_env: None,
        log_format: LogFormat::Text,
        log_level: None,
        vsock: VsockAccess::Denied,
        environment: Vec::new(),
        wall_clock_ns: wall_clock_ns(),
    };
    write_frame(&mut stream, &HostMessage::Init(init), b"").map_err(broken)?;
    expect(stream, |message| {
        matches!(message, GuestMessage::Ready { .. })
    })
}

/// Writes a request as an agent does: with the resume before it, at once.
fn ask(mut stream: &UnixStream) -> Result<(), ResetError> {
    let resume = Resume {
        generation: 1,
        entropy: [7; 64],
        wall_clock_ns: wall_clock_ns(),
        identity: Identity {
            hostname: "bench".to_owned(),
            ..Identity::default()
        },
    };
    let invoke = Invoke {
        request: RequestId::from_random([9; 16]),
        deadline_ms: wall_clock_ns() / 1_000_000 + 60_000,
        function_arn: "arn:aws:lambda:local:000000000000:function:noop".to_owned(),
        trace_id: None,
        client_context: None,
        tenant_id: None,
    };
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &HostMessage::Resume(resume), b"").map_err(broken)?;
    write_frame(&mut bytes, &HostMessage::Invoke(invoke), b"{}").map_err(broken)?;
    let written = stream.write_all(&bytes);
    Ok(written.map_err(prepare("write a request to the channel"))?)
}

/// Reads the confirmation and the answer.
fn hear(stream: &UnixStream) -> Result<(), ResetError> {
    expect(stream, |message| {
        matches!(message, GuestMessage::Resumed { .. })
    })?;
    expect(stream, |message| {
        matches!(message, GuestMessage::Response { more: false, .. })
    })
}

/// Waits for a message, and takes no other but logs and what a held request says.
fn expect(
    mut stream: &UnixStream,
    wanted: impl Fn(&GuestMessage) -> bool,
) -> Result<(), ResetError> {
    loop {
        let (message, payload) = read_frame::<GuestMessage>(&mut stream).map_err(broken)?;
        if wanted(&message) {
            return Ok(());
        }
        match message {
            GuestMessage::Log { .. }
            | GuestMessage::Holding { .. }
            | GuestMessage::Delivered { .. } => {}
            other => {
                let payload = String::from_utf8_lossy(&payload);
                return Err(ResetError::Guest(format!("it said {other:?} {payload}")));
            }
        }
    }
}

fn broken(error: FrameError) -> ResetError {
    ResetError::Guest(snapback_proto::words::chain(&error))
}
