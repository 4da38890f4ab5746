//! Where things that need KVM run: on this host if its KVM is good enough, else in the box. All
//! of them ask here.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::cache::Cache;
use crate::execution::{OnOutput, Outcome};
use crate::host_box::{self, Clock, Settings};
use crate::job::Job;
use crate::native;

/// Overrides the choice: `always` or `never`.
const OVERRIDE: &str = "SNAPBACK_BOX";

/// Set in the box, to `fast` or `counted`: programs that measure have to say whose clock they
/// measured with, and nothing in the box starts another.
pub const INSIDE: &str = "SNAPBACK_IN_BOX";

/// Where a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this host.
    Native,
    /// In the box.
    Box,
}

/// The part of `snapback doctor --json` that matters here.
#[derive(Deserialize)]
struct Diagnosis {
    ok: bool,
}

impl Place {
    /// Chooses by `SNAPBACK_BOX`, else by what `snapback doctor` (in `binaries`) finds.
    pub fn choose(binaries: &Path) -> Result<Self> {
        if std::env::var_os(INSIDE).is_some() {
            return Ok(Self::Native);
        }
        let wish = std::env::var(OVERRIDE).unwrap_or_default();
        if let Some(place) = overridden(&wish)? {
            return Ok(place);
        }
        let doctor = binaries.join("snapback");
        let output = Command::new("timeout")
            .args(["-k", "5", "60"])
            .arg(&doctor)
            .args(["doctor", "--json"])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {} doctor", doctor.display()))?;
        Ok(from_diagnosis(output.status.success(), &output.stdout))
    }

    /// Says in words where jobs run.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Native => "natively on this host",
            Self::Box => "in the box, an emulated host",
        }
    }

    /// Runs `job` here; calls `on_output` with what it writes, as it writes it.
    pub fn run(
        self,
        cache: &Cache,
        settings: &Settings,
        mut job: Job,
        on_output: OnOutput<'_>,
    ) -> Result<Outcome> {
        match self {
            Self::Native => native::run(&job, settings.timeout, on_output),
            Self::Box => {
                let clock = match settings.clock {
                    Clock::Fast => "fast",
                    Clock::Counted => "counted",
                };
                job.set(INSIDE, clock);
                job.visible.push(cache.root().to_owned());
                host_box::run(cache, settings, &job, on_output)
            }
        }
    }
}

/// The machine of a job that leaves the choice to us.
pub fn default_settings(timeout: Duration) -> Settings {
    Settings {
        clock: Clock::Fast,
        memory_mib: 4096,
        timeout,
    }
}

fn overridden(wish: &str) -> Result<Option<Place>> {
    match wish {
        "" => Ok(None),
        "always" => Ok(Some(Place::Box)),
        "never" => Ok(Some(Place::Native)),
        other => bail!("{OVERRIDE} is '{other}', but must be 'always', 'never' or not set"),
    }
}

/// A host is used only if the doctor both says so and ended well: one that crashed on the probe
/// is no place for virtual machines.
fn from_diagnosis(ended_well: bool, report: &[u8]) -> Place {
    match serde_json::from_slice::<Diagnosis>(report) {
        Ok(Diagnosis { ok: true }) if ended_well => Place::Native,
        _ => Place::Box,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clean_bill_of_health_means_native() {
        assert_eq!(from_diagnosis(true, br#"{"ok":true,"x":1}"#), Place::Native);
        assert_eq!(from_diagnosis(true, br#"{"ok":false}"#), Place::Box);
        assert_eq!(from_diagnosis(false, br#"{"ok":true}"#), Place::Box);
        assert_eq!(from_diagnosis(true, b"garbage"), Place::Box);
    }

    #[test]
    fn the_override_is_understood_or_refused() {
        assert_eq!(overridden("").unwrap(), None);
        assert_eq!(overridden("always").unwrap(), Some(Place::Box));
        assert_eq!(overridden("never").unwrap(), Some(Place::Native));
        assert!(overridden("yes").is_err());
    }
}
