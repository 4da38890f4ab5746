//! Real probes of what the host offers: what `snapback doctor` prints, and what
//! decides whether something that needs KVM runs here or in the box.
//!
//! Nothing here believes a version number or a processor flag where the thing
//! itself can be tried: a tiny guest really runs ([`guest`]), a missing page is
//! really filled ([`paging`]). Every probe is bounded in time.

mod guest;
mod host;
mod kvm;
mod paging;

use serde::Serialize;

pub use host::branch_barrier;

/// What the host offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether every required check passed.
    pub ok: bool,
    /// In the order in which they depend on one another.
    pub checks: Vec<Check>,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A short, stable name.
    pub name: &'static str,
    /// Whether it works.
    pub ok: bool,
    /// Whether Snapback needs it; without an optional thing it is slower or lacks
    /// a feature.
    pub required: bool,
    /// What was found, in words.
    pub detail: String,
    /// What to do about it, in words; empty when there is nothing to do.
    pub remedy: String,
}

impl Report {
    /// The checks that make this host unusable.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks
            .iter()
            .filter(|check| check.required && !check.ok)
    }
}

/// Tries everything. Takes some tens of milliseconds on a good host and at most
/// ten seconds on a bad one.
#[must_use]
pub fn probe() -> Report {
    let mut checks = kvm::checks();
    checks.push(paging::check());
    checks.extend(host::checks());
    Report {
        ok: checks.iter().all(|check| check.ok || !check.required),
        checks,
    }
}

/// Whether Snapback needs what a check tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Optional,
}

/// A check of its outcome: what was found, or what is wrong. The remedy is only
/// kept when it is needed.
fn check(name: &'static str, need: Need, outcome: Result<String, String>, remedy: &str) -> Check {
    let (ok, detail) = match outcome {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    let remedy = if ok { String::new() } else { remedy.to_owned() };
    Check {
        name,
        ok,
        required: need == Need::Required,
        detail,
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_ok_without_what_is_optional() {
        let missing = check("x", Need::Optional, Err("no".into()), "do this");
        assert_eq!(
            (missing.ok, missing.required, &*missing.remedy),
            (false, false, "do this")
        );
        let there = check("y", Need::Required, Ok("yes".into()), "do this");
        assert_eq!((there.ok, &*there.remedy), (true, ""));
    }

    #[test]
    fn whatever_the_host_is_the_probe_ends_and_explains_itself() {
        let start = std::time::Instant::now();
        let report = probe();
        assert!(start.elapsed() < std::time::Duration::from_secs(10));
        assert_eq!(report.ok, report.failures().next().is_none());
        for check in &report.checks {
            assert!(!check.detail.is_empty(), "{check:?}");
            assert_eq!(check.ok, check.remedy.is_empty(), "{check:?}");
        }
        let mut names: Vec<_> = report.checks.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), report.checks.len());
    }
}
