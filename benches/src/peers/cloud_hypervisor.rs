//! Cloud Hypervisor, by its HTTP interface (its `vmm/src/api/openapi/cloud-hypervisor.yaml`
//! and `docs/snapshot_restore.md`). Its virtio devices are on a PCI bus, so its guest has
//! the same kernel with a driver for that.
//!
//! ```text
//!  save:     PUT vm.create ─► vm.boot ─► guest answers ─► vm.pause ─► vm.snapshot
//!  restore:  PUT vm.restore ─► vm.resume ─► guest answers
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Machine, Places};
use super::process;
use super::{CID, Guest, PATIENCE, PeerError, Start, Times, Vmm, prepare};

const PEER: &str = "cloud-hypervisor";
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 nomodule \
     random.trust_cpu=on i8042.noaux i8042.nokbd";
/// The first version that brings memory page by page (its release notes); an earlier one
/// copies all of it first.
const ON_DEMAND_SINCE: u32 = 52;

/// A program that is Cloud Hypervisor.
#[derive(Debug, Clone)]
pub struct CloudHypervisor {
    /// Its path.
    program: PathBuf,
    /// The guest's kernel, with virtio over PCI.
    kernel: PathBuf,
    /// How long it may take for anything.
    limit: Duration,
}

impl CloudHypervisor {
    /// The one at `program`, whose guests run `kernel`.
    #[must_use]
    pub fn new(program: PathBuf, kernel: PathBuf) -> Self {
        Self {
            program,
            kernel,
            limit: PATIENCE,
        }
    }

    /// As this one, which may take `limit` for anything.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    fn version(&self) -> Result<String, PeerError> {
        let line = process::version(PEER, &self.program)?;
        let version = line.split_whitespace().last().unwrap_or_default();
        Ok(version.trim_start_matches('v').to_owned())
    }

    fn on_demand(&self) -> Result<bool, PeerError> {
        let version = self.version()?;
        let major = version.split('.').next().unwrap_or_default();
        Ok(major
            .parse::<u32>()
            .is_ok_and(|major| major >= ON_DEMAND_SINCE))
    }

    fn machine(&self, guest: &Guest) -> Result<Machine, PeerError> {
        let places = Places::of(PEER, &guest.scratch);
        let mut command = Command::new(&self.program);
        command
            .arg("--api-socket")
            .arg(format!("path={}", places.api.display()));
        Machine::start(PEER, &mut command, &places, self.limit)
    }

    fn configuration(&self, guest: &Guest) -> Value {
        let disk = |image: &Path| json!({ "path": image, "readonly": true });
        json!({
            "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
            "memory": { "size": u64::from(guest.memory_mib) << 20 },
            "payload": {
                "kernel": self.kernel,
                "initramfs": guest.initramfs,
                "cmdline": COMMAND_LINE,
            },
            "disks": [disk(&guest.root), disk(&guest.code)],
            "vsock": { "cid": CID, "socket": Places::of(PEER, &guest.scratch).vsock },
            "serial": { "mode": "Null" },
            "console": { "mode": "Off" },
        })
    }
}

impl Vmm for CloudHypervisor {
    fn peer(&self) -> &'static str {
        PEER
    }

    fn name(&self) -> Result<String, PeerError> {
        Ok(format!("{PEER} {}", self.version()?))
    }

    fn params(&self) -> Result<Vec<(&'static str, Value)>, PeerError> {
        let memory = if self.on_demand()? {
            "on_demand"
        } else {
            "copied"
        };
        Ok(vec![("memory", json!(memory))])
    }

    fn save(&self, guest: &Guest) -> Result<(), PeerError> {
        let folder = folder(guest);
        fs::create_dir_all(&folder)
            .map_err(prepare(PEER, format!("create {}", folder.display())))?;
        let mut machine = self.machine(guest)?;
        machine.put("/api/v1/vm.create", Some(&self.configuration(guest)))?;
        machine.put("/api/v1/vm.boot", None)?;
        machine.answers(Instant::now())?;
        machine.put("/api/v1/vm.pause", None)?;
        let to = json!({ "destination_url": url(guest) });
        machine.put("/api/v1/vm.snapshot", Some(&to))
    }

    fn restore(&self, guest: &Guest, start: Start) -> Result<Times, PeerError> {
        let mut from = json!({ "source_url": url(guest) });
        if self.on_demand()? {
            from["memory_restore_mode"] = json!("OnDemand");
        }
        let mut machine = self.machine(guest)?;
        let begin = machine.begin(start);
        machine.put("/api/v1/vm.restore", Some(&from))?;
        machine.put("/api/v1/vm.resume", None)?;
        machine.answers(begin)
    }
}

/// The snapshot's directory, which it wants to find.
fn folder(guest: &Guest) -> PathBuf {
    guest.scratch.join(format!("{PEER}-snapshot"))
}

fn url(guest: &Guest) -> String {
    format!("file://{}", folder(guest).display())
}
