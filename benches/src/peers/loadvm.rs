//! QEMU's own way back to an earlier state: `savevm` once, `loadvm` after each request.
//! The snapshot lies in a qcow2 image on a tmpfs.

use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;

use super::qemu::{Machine, PEER, load_vsock, prepare, refused, version};
use super::{Guest, PeerError};
use crate::report::{Peer, Samples, milliseconds};

/// Where the snapshot is kept; nothing else is in it.
const IMAGE: &str = "qemu-snapshot.qcow2";

/// Boots the guest of `guest.initramfs`, which writes as many pages as it is told, and
/// puts it back after requests of each of `pages`. Blocks.
///
/// # Errors
/// When QEMU, the host's vsock or the guest does not do its part.
pub fn loadvm(guest: &Guest, pages: &[u32], rounds: u32) -> Result<Peer, PeerError> {
    load_vsock()?;
    let image = guest.scratch.join(IMAGE);
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&image)
        .arg("1G")
        .stdin(Stdio::null())
        .status()
        .map_err(prepare("run qemu-img"))?;
    if !made.success() {
        return Err(refused("qemu-img create", &json!(made.to_string())));
    }
    let drive = format!("if=none,id=snapshots,format=qcow2,file={}", image.display());
    let mut machine = Machine::start_with(guest, true, &["-drive", &drive])?;
    machine.answers("0 0\n")?;
    let mut control = machine.control()?;
    let mut human = |line: &str| {
        let said = control.command("human-monitor-command", &json!({ "command-line": line }))?;
        match said.as_str() {
            Some("") => Ok(()),
            _ => Err(refused(line, &said)),
        }
    };
    human("savevm ready")?;
    let mut rows = Vec::new();
    for count in pages {
        let (mut took, mut cycle) = (Samples::new("ms"), Samples::new("ms"));
        for _ in 0..rounds {
            let begin = Instant::now();
            machine.answers(&format!("{count} 0\n"))?;
            let answered = Instant::now();
            human("loadvm ready")?;
            took.push(milliseconds(answered.elapsed()));
            cycle.push(milliseconds(begin.elapsed()));
        }
        let params = || [("pages", json!(count))];
        rows.extend(took.row("reset/loadvm", params()));
        rows.extend(cycle.row("reset/cycle", params()));
    }
    Ok(Peer {
        peer: format!("{PEER}-microvm {}", version()?),
        rows,
    })
}
