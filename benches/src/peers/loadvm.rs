//! QEMU's own way back to an earlier state: `savevm` once, `loadvm` after each request.
//! The snapshot lies in a qcow2 image on a tmpfs.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::qemu::{Control, Machine, PEER, load_vsock, prepare, refused, version};
use super::{Guest, PATIENCE, PeerError};
use crate::report::{Peer, Samples, milliseconds};

/// Where the snapshot is kept; nothing else is in it.
const IMAGE: &str = "qemu-snapshot.qcow2";
/// Room in it, in bytes.
const SIZE: u64 = 1 << 30;

/// Boots the guest of `guest.initramfs`, which writes as many pages as it is told, and
/// puts it back after requests of each of `pages`. Blocks.
///
/// # Errors
/// When QEMU, the host's vsock or the guest does not do its part.
pub fn loadvm(guest: &Guest, pages: &[u32], rounds: u32) -> Result<Peer, PeerError> {
    load_vsock()?;
    let image = guest.scratch.join(IMAGE);
    fs::File::create(&image).map_err(prepare("make a file for the snapshot"))?;
    let mut machine = Machine::start_with(guest, true, &[])?;
    machine.answers("0 0\n")?;
    let mut control = machine.control()?;
    make_image(&mut control, &image)?;
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

/// Has QEMU make an image in the empty file `path` and use it.
fn make_image(control: &mut Control, path: &Path) -> Result<(), PeerError> {
    let file = json!({ "driver": "file", "node-name": "file", "filename": path });
    control.command("blockdev-add", &file)?;
    let options = json!({ "driver": "qcow2", "file": "file", "size": SIZE });
    let job = json!({ "job-id": "image", "options": options });
    control.command("blockdev-create", &job)?;
    let begin = Instant::now();
    loop {
        let jobs = control.command("query-jobs", &json!({}))?;
        let job = &jobs[0];
        match job["status"].as_str() {
            Some("concluded") if job["error"].is_null() => break,
            Some("concluded") => return Err(refused("blockdev-create", job)),
            _ if begin.elapsed() > PATIENCE => return Err(refused("blockdev-create", job)),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    control.command("job-dismiss", &json!({ "id": "image" }))?;
    let image = json!({ "driver": "qcow2", "node-name": "snapshots", "file": "file" });
    control.command("blockdev-add", &image).map(drop)
}
