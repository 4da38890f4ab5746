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
