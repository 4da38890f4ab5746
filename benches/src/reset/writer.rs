//! The guest that writes as many pages as it is told to (`benches/dirty-init`).

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use snapback_proto::control::ResetReport;

use super::ResetError;
use crate::machine::{Link, Machine, Snapshot, Software};

/// Longest line of the guest, in bytes.
const LINE: usize = 64;

/// What one request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Writes so many pages, of this choice.
    Pages(u32, u32),
    /// Reads the disk and sends to the network.
    Devices,
}

/// What one life showed.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// What the writes took in the guest.
    pub wrote: Duration,
    /// The reset after it.
    pub reset: ResetReport,
}

/// The guest's software.
pub fn software(vmm: &Path, assets: &Path, initramfs: &Path) -> Software {
    Software {
        vmm: vmm.to_owned(),
        kernel: assets.join("vmlinux"),
        initramfs: initramfs.to_owned(),
        disks: vec![assets.join("rootfs/python.erofs")],
    }
}

/// Boots it and snapshots it while it waits for its first line.
pub fn snapshot<'a>(software: &'a Software, link: &'a Link) -> Result<Snapshot<'a>, ResetError> {
    Snapshot::make(software, link, |stream, console| {
        let said = line(stream).map_err(|error| match error {
            ResetError::Guest(why) => ResetError::Guest(format!("{why}; {}", console.text())),
            other => other,
        })?;
        if said == "ready" {
            return Ok(());
        }
        Err(ResetError::Guest(format!("it said {said:?}")))
    })
}

/// Has the machine do `work` in one life, without a reset.
pub fn run(machine: &Machine, work: Work) -> Result<(UnixStream, Duration), ResetError> {
    let stream = machine.run()?;
    let took = ask(&stream, work)?;
    Ok((stream, took))
}

/// As [`run`], then puts the machine back.
pub fn live(machine: &Machine, work: Work) -> Result<Life, ResetError> {
    let (_stream, wrote) = run(machine, work)?;
    let reset = machine.reset()?;
    Ok(Life { wrote, reset })
}

/// As [`live`], the way an agent does it: the work waits for the guest in its channel, and
/// nobody waits for the reply to the command that lets it run.
pub fn request(machine: &Machine, work: Work) -> Result<Life, ResetError> {
    let wrote = machine.live(|stream| tell(stream, work), hear)?;
    let reset = machine.reset()?;
    Ok(Life { wrote, reset })
}

/// Has a guest that runs do `work`.
pub fn ask(stream: &UnixStream, work: Work) -> Result<Duration, ResetError> {
    tell(stream, work)?;
    hear(stream)
}

fn tell(mut stream: &UnixStream, work: Work) -> Result<(), ResetError> {
    let words = match work {
        Work::Pages(count, choice) => format!("{count} {choice}\n"),
        Work::Devices => "devices\n".to_owned(),
    };
    let sent = stream.write_all(words.as_bytes());
    sent.map_err(|error| ResetError::Guest(error.to_string()))
}

/// How long the guest says that it took.
fn hear(stream: &UnixStream) -> Result<Duration, ResetError> {
    let said = line(stream)?;
    let nanoseconds = said.parse();
    let nanoseconds = nanoseconds.map_err(|_| ResetError::Guest(format!("it said {said:?}")))?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// One line. Nothing follows it, so reading ahead loses nothing.
fn line(mut stream: &UnixStream) -> Result<String, ResetError> {
    let (mut bytes, mut length) = ([0; LINE], 0);
    while let Some(room) = bytes.get_mut(length..).filter(|room| !room.is_empty()) {
        match stream.read(room) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) => return Err(ResetError::Guest(error.to_string())),
        }
        let said = bytes.get(..length).unwrap_or_default();
        if let Some(said) = said.strip_suffix(b"\n") {
            return Ok(String::from_utf8_lossy(said).into_owned());
        }
    }
    Err(ResetError::Guest("it ended within a line".to_owned()))
}
