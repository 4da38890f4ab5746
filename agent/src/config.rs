//! The agent's configuration: a TOML file, every key of which has a default.
//!
//! Numbers carry their unit in the key's name. A value outside its range is
//! refused at start, with the key's name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// Where the configuration is looked for.
pub const DEFAULT_FILE: &str = "/etc/snapback/config.toml";

/// Kernel command line of a guest that boots to be snapshotted.
pub const DEFAULT_COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 \
     nomodule random.trust_cpu=on i8042.noaux i8042.nokbd i8042.nopnp no_timer_check \
     mitigations=auto";

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where things are.
    pub paths: Paths,
    /// How much at once.
    pub limits: Limits,
    /// How long at most.
    pub timeouts: Timeouts,
    /// What a microVM's process may use.
    pub cgroup: Cgroup,
    /// What is kept ready.
    pub pools: Pools,
    /// The threads that fill in guest memory.
    pub pager: Pager,
    /// The guest's kernel.
    pub kernel: Kernel,
}

/// Where things are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// The API's Unix socket.
    pub socket: PathBuf,
    /// Functions, images and snapshots.
    pub state_dir: PathBuf,
    /// `vmlinux`, `guest-init.cpio`, `rootfs/<name>.erofs`.
    pub assets: PathBuf,
    /// The `snapback-vmm` program; when it is not set, the installed one or the
    /// one next to the agent's own program.
    pub vmm: Option<PathBuf>,
}

/// How much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// MicroVMs that serve requests, idle ones included.
    pub max_environments: usize,
    /// Requests that run at the same time.
    pub max_concurrent_requests: usize,
    /// Requests that wait for a place.
    pub max_queued_requests: usize,
    /// Functions that are built at the same time.
    pub max_builds: usize,
    /// Registered functions.
    pub max_functions: usize,
    /// Size of a function's code, unpacked, in MiB.
    pub max_code_mib: u64,
    /// Memory of one function, in MiB.
    pub max_memory_mib: u32,
    /// Size of an answer that comes in pieces, in MiB.
    pub max_streamed_mib: u64,
    /// Requests whose figures are kept.
    pub request_records: usize,
}

/// How long at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// One command to a VMM process, a reset excepted.
    pub command_ms: u64,
    /// A reset.
    pub reset_ms: u64,
    /// From the start of a VMM process to guest-init's first word.
    pub boot_ms: u64,
    /// From there to the function's ready point.
    pub init_ms: u64,
    /// Until a restored guest confirms entropy and clock.
    pub resume_ms: u64,
    /// Waiting for a place or an environment.
    pub queue_ms: u64,
    /// Running requests after SIGTERM.
    pub drain_ms: u64,
    /// How long an environment stays idle before it is retired.
    pub idle_ms: u64,
    /// How long `GET /v1/requests/{id}` waits for the reset.
    pub record_wait_ms: u64,
    /// Packing a function's code.
    pub pack_ms: u64,
}

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

/// The threads that fill in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pager {
    /// How many threads.
    pub threads: usize,
    /// How much is filled in around a missing page, in KiB: a power of two from
    /// 4 to 2048.
    pub fill_kib: u32,
    /// Whether the pages of a snapshot's first run are recorded, and brought at once
    /// when the snapshot is loaded again.
    pub working_sets: bool,
}

/// The guest's kernel.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kernel {
    /// Its command line.
    pub command_line: String,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            socket: "/run/snapback/api.sock".into(),
            state_dir: "/var/lib/snapback".into(),
            assets: "/usr/lib/snapback".into(),
            vmm: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_environments: 64,
            max_concurrent_requests: 64,
            max_queued_requests: 128,
            max_builds: 1,
            max_functions: 1000,
            max_code_mib: 250,
            max_memory_mib: 10_240,
            max_streamed_mib: 200,
            request_records: 1024,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            command_ms: 10_000,
            reset_ms: 10_000,
            boot_ms: 60_000,
            init_ms: 60_000,
            resume_ms: 10_000,
            queue_ms: 30_000,
            drain_ms: 30_000,
            idle_ms: 600_000,
            record_wait_ms: 10_000,
            pack_ms: 120_000,
        }
    }
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

impl Default for Pager {
    fn default() -> Self {
        Self {
            threads: 2,
            fill_kib: 64,
            working_sets: true,
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

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {} cannot be read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration {} is not valid", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A number is outside its range.
    #[error("`{key}` is {value}, and must be from {least} to {most}")]
    OutOfRange {
        /// Which key.
        key: &'static str,
        /// What it says.
        value: u64,
        /// The smallest that is allowed.
        least: u64,
        /// The largest that is allowed.
        most: u64,
    },
    /// `pager.fill_kib` is not a power of two.
    #[error("`pager.fill_kib` is {0}, and must be a power of two")]
    NotAPowerOfTwo(u32),
}

impl Config {
    /// Reads `path`; without one, the default file when there is one, else the
    /// defaults.
    ///
    /// # Errors
    /// When the file cannot be read or says something that is not allowed.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: file.to_owned(),
                    source,
                });
            }
        };
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: file.to_owned(),
            source: Box::new(source),
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// Names the first key that is outside its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        const DAY_MS: u64 = 24 * 60 * 60 * 1000;
        let (limits, timeouts) = (&self.limits, &self.timeouts);
        let wide = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        let ranges = [
            (
                "limits.max_environments",
                wide(limits.max_environments),
                1,
                100_000,
            ),
            (
                "limits.max_concurrent_requests",
                wide(limits.max_concurrent_requests),
                1,
                100_000,
            ),
            (
                "limits.max_queued_requests",
                wide(limits.max_queued_requests),
                0,
                1_000_000,
            ),
            ("limits.max_builds", wide(limits.max_builds), 1, 64),
            (
                "limits.max_functions",
                wide(limits.max_functions),
                1,
                100_000,
            ),
            ("limits.max_code_mib", limits.max_code_mib, 1, 10_240),
            (
                "limits.max_memory_mib",
                u64::from(limits.max_memory_mib),
                64,
                10_240,
            ),
            ("limits.max_streamed_mib", limits.max_streamed_mib, 1, 10_240),
            (
                "limits.request_records",
                wide(limits.request_records),
                1,
                1_000_000,
            ),
            ("timeouts.command_ms", timeouts.command_ms, 1, DAY_MS),
            ("timeouts.reset_ms", timeouts.reset_ms, 1, DAY_MS),
            ("timeouts.boot_ms", timeouts.boot_ms, 1, DAY_MS),
            ("timeouts.init_ms", timeouts.init_ms, 1, DAY_MS),
            ("timeouts.resume_ms", timeouts.resume_ms, 1, DAY_MS),
            ("timeouts.queue_ms", timeouts.queue_ms, 1, DAY_MS),
            ("timeouts.drain_ms", timeouts.drain_ms, 0, DAY_MS),
            ("timeouts.idle_ms", timeouts.idle_ms, 1, DAY_MS),
            (
                "timeouts.record_wait_ms",
                timeouts.record_wait_ms,
                0,
                DAY_MS,
            ),
            ("timeouts.pack_ms", timeouts.pack_ms, 1, DAY_MS),
            (
                "cgroup.overhead_mib",
                u64::from(self.cgroup.overhead_mib),
                8,
                65_536,
            ),
            (
                "cgroup.pids_max",
                u64::from(self.cgroup.pids_max),
                4,
                65_536,
            ),
            (
                "cgroup.cpu_weight",
                u64::from(self.cgroup.cpu_weight),
                1,
                10_000,
            ),
            ("pools.blank", wide(self.pools.blank), 0, 1000),
            (
                "pools.blank_starting",
                wide(self.pools.blank_starting),
                1,
                64,
            ),
            (
                "pools.blank_per_second",
                u64::from(self.pools.blank_per_second),
                1,
                1000,
            ),
            ("pager.threads", wide(self.pager.threads), 1, 64),
            ("pager.fill_kib", u64::from(self.pager.fill_kib), 4, 2048),
        ];
        for (key, value, least, most) in ranges {
            if value < least || value > most {
                return Err(ConfigError::OutOfRange {
                    key,
                    value,
                    least,
                    most,
                });
            }
        }
        if !self.pager.fill_kib.is_power_of_two() {
            return Err(ConfigError::NotAPowerOfTwo(self.pager.fill_kib));
        }
        Ok(())
    }
}

impl Timeouts {
    /// [`Self::command_ms`] as a duration.
    #[must_use]
    pub const fn command(&self) -> Duration {
        Duration::from_millis(self.command_ms)
    }

    /// [`Self::reset_ms`] as a duration.
    #[must_use]
    pub const fn reset(&self) -> Duration {
        Duration::from_millis(self.reset_ms)
    }
}

impl Pools {
    /// The least time between two starts of blank microVMs.
    #[must_use]
    pub fn pause(&self) -> Duration {
        Duration::from_secs(1) / self.blank_per_second.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn a_wrong_key_or_number_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "[limits]\nmax_enviroments = 3\n").unwrap();
        assert!(matches!(
            Config::load(Some(file.path())),
            Err(ConfigError::Parse { .. })
        ));
        fs::write(file.path(), "[limits]\nmax_environments = 0\n").unwrap();
        let error = Config::load(Some(file.path())).unwrap_err();
        assert!(
            error.to_string().contains("limits.max_environments"),
            "{error}"
        );
        fs::write(file.path(), "[pager]\nfill_kib = 12\n").unwrap();
        assert!(matches!(
            Config::load(Some(file.path())),
            Err(ConfigError::NotAPowerOfTwo(12))
        ));
    }

    #[test]
    fn a_named_file_must_exist() {
        assert!(Config::load(Some(Path::new("/nonexistent/snapback.toml"))).is_err());
    }
}
