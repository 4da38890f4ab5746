//! Firecracker, by its HTTP interface (its `src/firecracker/swagger/firecracker.yaml` and
//! `docs/snapshotting/snapshot-support.md`), as its documentation makes restores fast:
//! the memory file is mapped, and loading resumes at once.
//!
//! ```text
//!  save:     PUT machine-config, boot-source, drives/…, vsock ─► PUT actions ─► guest answers
//!            ─► PATCH vm (paused) ─► PUT snapshot/create
//!  restore:  PUT snapshot/load (and resume) ─► guest answers
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Machine, Places};
use super::process::version;
use super::{CID, Guest, PATIENCE, PeerError, Start, Times, Vmm};

const PEER: &str = "firecracker";
/// The virtio-mmio devices are added to it. There is no PCI bus to look for.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 nomodule pci=off \
     random.trust_cpu=on i8042.noaux i8042.nokbd";

/// A program that is Firecracker.
#[derive(Debug, Clone)]
pub struct Firecracker {
    /// Its path.
    program: PathBuf,
    /// How long it may take for anything.
    limit: Duration,
}

impl Firecracker {
    /// The one at `program`.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            limit: PATIENCE,
        }
    }

    /// As this one, which may take `limit` for anything.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    fn machine(&self, guest: &Guest) -> Result<Machine, PeerError> {
        let places = Places::of(PEER, &guest.scratch);
        let mut command = Command::new(&self.program);
        command.arg("--api-sock").arg(&places.api);
        Machine::start(PEER, &mut command, &places, self.limit)
    }
}

impl Vmm for Firecracker {
    fn peer(&self) -> &'static str {
        PEER
    }

    fn name(&self) -> Result<String, PeerError> {
        let line = version(PEER, &self.program)?;
        let version = line.split_whitespace().last().unwrap_or("of no version");
        Ok(format!("{PEER} {}", version.trim_start_matches('v')))
    }

    fn save(&self, guest: &Guest) -> Result<(), PeerError> {
        let mut machine = self.machine(guest)?;
        for (path, body) in configuration(guest) {
            machine.put(path, Some(&body))?;
        }
        machine.put("/actions", Some(&json!({ "action_type": "InstanceStart" })))?;
        machine.answers(Instant::now())?;
        machine.patch("/vm", &json!({ "state": "Paused" }))?;
        let (state, memory) = files(guest);
        let snapshot = json!({
            "snapshot_type": "Full",
            "snapshot_path": state,
            "mem_file_path": memory,
        });
        machine.put("/snapshot/create", Some(&snapshot))
    }

    fn restore(&self, guest: &Guest, start: Start) -> Result<Times, PeerError> {
        let (state, memory) = files(guest);
        let snapshot = json!({
            "snapshot_path": state,
            "mem_backend": { "backend_type": "File", "backend_path": memory },
            "resume_vm": true,
        });
        let mut machine = self.machine(guest)?;
        let begin = machine.begin(start);
        machine.put("/snapshot/load", Some(&snapshot))?;
        machine.answers(begin)
    }
}

/// State and memory of the snapshot. The memory is mapped privately, so that one file is
/// enough for all restores.
fn files(guest: &Guest) -> (PathBuf, PathBuf) {
    let at = |name: &str| guest.scratch.join(format!("{PEER}-{name}"));
    (at("state"), at("memory"))
}

/// What is put before the guest starts, in this order: disks get their names by it.
fn configuration(guest: &Guest) -> [(&'static str, Value); 5] {
    let drive = |id: &str, image: &Path| {
        json!({
            "drive_id": id,
            "path_on_host": image,
            // The initramfs mounts both.
            "is_root_device": false,
            "is_read_only": true,
        })
    };
    [
        (
            "/machine-config",
            json!({ "vcpu_count": 1, "mem_size_mib": guest.memory_mib }),
        ),
        (
            "/boot-source",
            json!({
                "kernel_image_path": guest.kernel,
                "initrd_path": guest.initramfs,
                "boot_args": COMMAND_LINE,
            }),
        ),
        ("/drives/root", drive("root", &guest.root)),
        ("/drives/code", drive("code", &guest.code)),
        (
            "/vsock",
            json!({ "guest_cid": CID, "uds_path": Places::of(PEER, &guest.scratch).vsock }),
        ),
    ]
}
