//! The microVMs: what their processes may use, what is kept ready, and their kernel.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::range::{Range, range, wide};

/// Kernel command line of a guest that boots to be snapshotted.
pub const DEFAULT_COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 \
     nomodule random.trust_cpu=on tsc=reliable i8042.noaux i8042.nokbd i8042.nopnp no_timer_check \
     mitigations=auto";

/// What a microVM's process may use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cgroup {
    /// The cgroup v2 directory below which every microVM has its own.
    pub root: Option<PathBuf>,
    /// Memory beyond the guest's own, in MiB.
    pub overhead_mib: u32,
    /// Processes and threads.
    pub pids_max: u32,
    /// Share of the processors, 1 to 10000.
    pub cpu_weight: u32,
}

/// Who the microVMs' processes are on this host: each is a user, and a group of the same
/// number, that no other process is. The numbers need no entry in `/etc/passwd` and
/// should belong to nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Users {
    /// The first of them.
    pub first: u32,
    /// How many there are: at least one for each microVM that there can be.
    pub count: u32,
}

/// What is kept ready before anybody asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pools {
    /// MicroVMs without a snapshot, for each shape (memory and processors) in use.
    /// They count as environments.
    pub blank: usize,
    /// How many of them are started at a time.
    pub blank_starting: usize,
    /// How many of them are started per second at most.
    pub blank_per_second: u32,
}

/// The guest's kernel.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kernel {
    /// Its command line.
    pub command_line: String,
}

impl Default for Cgroup {
    fn default() -> Self {
        Self {
            root: None,
            overhead_mib: 64,
            pids_max: 64,
            cpu_weight: 100,
        }
    }
}

impl Default for Users {
    fn default() -> Self {
        Self {
            // The first number above those that systemd hands out (its document
            // "Users, Groups, UIDs and GIDs on systemd Systems").
            first: 0x7000_0000,
            count: 0x1_0000,
        }
    }
}

impl Default for Pools {
    fn default() -> Self {
        Self {
            blank: 2,
            blank_starting: 1,
            blank_per_second: 10,
        }
    }
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            command_line: DEFAULT_COMMAND_LINE.to_owned(),
        }
    }
}

impl Cgroup {
    pub(super) fn ranges(&self) -> Vec<Range> {
        vec![
            range("cgroup.overhead_mib", self.overhead_mib.into(), 8, 65_536),
            range("cgroup.pids_max", self.pids_max.into(), 4, 65_536),
            range("cgroup.cpu_weight", self.cpu_weight.into(), 1, 10_000),
        ]
    }
}

impl Users {
    pub(super) fn ranges(&self) -> Vec<Range> {
        vec![
            // 0 is root, and the last number stands for nobody.
            range("users.first", self.first.into(), 1, 0xfff0_0000),
            range("users.count", self.count.into(), 1, 0xf_fff0),
        ]
    }
}

impl Pools {
    pub(super) fn ranges(&self) -> Vec<Range> {
        vec![
            range("pools.blank", wide(self.blank), 0, 1000),
            range("pools.blank_starting", wide(self.blank_starting), 1, 64),
            range(
                "pools.blank_per_second",
                self.blank_per_second.into(),
                1,
                1000,
            ),
        ]
    }

    /// The least time between two starts of blank microVMs.
    #[must_use]
    pub fn pause(&self) -> Duration {
        Duration::from_secs(1) / self.blank_per_second.max(1)
    }
}
