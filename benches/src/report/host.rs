//! Where a run took place: the host, its clock and the source's revision.

use std::env;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;

use serde::{Deserialize, Serialize};

use super::Clock;

/// Set in the box, to `fast` or `counted`.
const INSIDE: &str = "SNAPBACK_IN_BOX";
/// Overrides what git says.
const REVISION: &str = "SNAPBACK_REVISION";
/// How long git may look at the source tree, in seconds.
const GIT_LIMIT_S: &str = "30";

/// The host that was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// Processors that this program may use.
    pub cpus: u64,
    /// Whether it is the box: an emulated host.
    #[serde(rename = "box")]
    pub in_box: bool,
}

impl Host {
    /// This host.
    #[must_use]
    pub fn here() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            kernel: release.trim().to_owned(),
            cpu: cpu_name(&cpuinfo).to_owned(),
            cpus: thread::available_parallelism()
                .ok()
                .and_then(|count| u64::try_from(count.get()).ok())
                .unwrap_or(0),
            in_box: env::var_os(INSIDE).is_some(),
        }
    }
}

/// Whose time this host's monotonic clock shows.
#[must_use]
pub fn clock() -> Clock {
    clock_of(env::var(INSIDE).ok().as_deref())
}

fn clock_of(inside: Option<&str>) -> Clock {
    match inside {
        Some("counted") => Clock::Virtual,
        _ => Clock::Wall,
    }
}

fn cpu_name(cpuinfo: &str) -> &str {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")
        .map_or("unknown", |(_, name)| name.trim())
}

/// The revision of the source tree around the current directory; `unknown` where
/// there is none. A `-dirty` at its end says that the tree has changes.
#[must_use]
pub fn revision() -> String {
    if let Ok(revision) = env::var(REVISION) {
        return revision;
    }
    // Where time is counted by instructions it leaps while all processors wait for a
    // file: a bound would end git at once, and the box as a whole has its own.
    let mut command = match clock() {
        Clock::Virtual => Command::new("git"),
        Clock::Wall => {
            let mut bounded = Command::new("timeout");
            bounded.args(["-k", "1", GIT_LIMIT_S, "git"]);
            bounded
        }
    };
    // The box shows the tree with its owner's ids, which git would not trust.
    let output = command
        .args(["--no-optional-locks", "-c", "safe.directory=*"])
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_counting_box_has_virtual_time() {
        assert_eq!(clock_of(Some("counted")), Clock::Virtual);
        assert_eq!(clock_of(Some("fast")), Clock::Wall);
        assert_eq!(clock_of(None), Clock::Wall);
    }

    #[test]
    fn the_processor_has_a_name() {
        let text = "processor\t: 0\nmodel name\t: A: fast one\nflags\t: x\n";
        assert_eq!(cpu_name(text), "A: fast one");
        assert_eq!(cpu_name("processor : 0\n"), "unknown");
    }

    #[test]
    fn this_host_is_described() {
        let host = Host::here();
        assert!(!host.kernel.is_empty());
        assert!(host.cpus > 0);
    }
}
