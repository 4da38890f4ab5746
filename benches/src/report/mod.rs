//! The one shape of a report, so that anyone can compare two runs.
//!
//! ```json
//! {"report": "demo", "revision": "71be032", "clock": "wall",
//!  "host": {"kernel": "6.12.57", "cpu": "…", "cpus": 4, "box": false},
//!  "rows": [{"name": "demo/reset", "unit": "ms", "p50": 0.31, "p99": 0.52,
//!            "p25": 0.3, "p75": 0.33, "n": 20, "params": {}}],
//!  "floor": [], "peers": [{"peer": "qemu-microvm 7.2", "rows": []}],
//!  "checks": [{"name": "demo/answers_right", "ok": true, "detail": "20 of 20"}]}
//! ```
//!
//! A row without samples is not written: a report never holds a number that nobody
//! measured.

pub mod host;
mod plot;
pub mod repeat;
mod samples;
pub mod table;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use host::Host;
pub use plot::PlotError;
pub use samples::{Samples, milliseconds, percentile, whole};

/// Everything that one run found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was run, for example `demo` or `bench/reset`.
    pub report: String,
    /// The source's revision.
    pub revision: String,
    /// Whose time the durations are in.
    pub clock: Clock,
    /// Where it ran.
    pub host: Host,
    /// What was measured.
    pub rows: Vec<Row>,
    /// What the host costs by itself, measured in the same run.
    pub floor: Vec<Row>,
    /// The same measurements of others, made in the same run.
    pub peers: Vec<Peer>,
    /// What had to hold.
    pub checks: Vec<Check>,
}

/// Whose time durations are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// The box's instruction counter: one instruction is one nanosecond.
    Virtual,
    /// Real time.
    Wall,
}

/// One measured quantity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What, for example `demo/reset`.
    pub name: String,
    /// The unit of all values, for example `ms` or `pages`.
    pub unit: String,
    /// The median, in `unit`.
    pub p50: f64,
    /// The value that 99 of 100 samples do not exceed, in `unit`.
    pub p99: f64,
    /// Where the middle half of the samples begins, in `unit`.
    pub p25: f64,
    /// Where the middle half of the samples ends, in `unit`.
    pub p75: f64,
    /// How many samples.
    pub n: u64,
    /// Under which conditions.
    pub params: Params,
}

/// The conditions of a measurement, by name.
pub type Params = BTreeMap<String, serde_json::Value>;

/// Another program, measured beside Snapback.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name and version.
    pub peer: String,
    /// What was measured.
    pub rows: Vec<Row>,
}

/// Something that had to hold, and whether it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What, for example `demo/no_traces`.
    pub name: String,
    /// Whether it held.
    pub ok: bool,
    /// The evidence, in words.
    pub detail: String,
}

/// A report could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The file failed.
    #[error("the report {} cannot be accessed", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no report.
    #[error("{} is not a report", path.display())]
    Shape {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Report {
    /// An empty report of this host and source tree.
    #[must_use]
    pub fn new(report: &str) -> Self {
        Self {
            report: report.to_owned(),
            revision: host::revision(),
            clock: host::clock(),
            host: Host::here(),
            rows: Vec::new(),
            floor: Vec::new(),
            peers: Vec::new(),
            checks: Vec::new(),
        }
    }

    /// Adds a row, if there is anything in it.
    pub fn add(&mut self, row: Option<Row>) {
        self.rows.extend(row);
    }

    /// Adds a check.
    pub fn check(&mut self, name: &str, ok: bool, detail: impl Into<String>) {
        self.checks.push(Check {
            name: name.to_owned(),
            ok,
            detail: detail.into(),
        });
    }

    /// Whether there are checks and every one held.
    #[must_use]
    pub fn ok(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.ok)
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        let shape = |source| ReportError::Shape {
            path: path.to_owned(),
            source,
        };
        let mut text = serde_json::to_string_pretty(self).map_err(shape)?;
        text.push('\n');
        fs::write(path, text).map_err(|source| ReportError::File {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// When the file cannot be read or is no report.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let text = fs::read(path).map_err(|source| ReportError::File {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|source| ReportError::Shape {
            path: path.to_owned(),
            source,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn report() -> Report {
        let mut samples = Samples::new("ms");
        samples.push(0.25);
        let mut report = Report {
            report: "bench/reset".to_owned(),
            revision: "abc".to_owned(),
            clock: Clock::Virtual,
            host: Host {
                kernel: "6.12".to_owned(),
                cpu: "a processor".to_owned(),
                cpus: 2,
                in_box: true,
            },
            rows: Vec::new(),
            floor: Vec::new(),
            peers: Vec::new(),
            checks: Vec::new(),
        };
        report.add(samples.row("reset/pages", [("pages", json!(50))]));
        report.add(Samples::new("ms").row("reset/nothing", []));
        report
    }

    #[test]
    fn the_shape_is_the_published_one() {
        let mut report = report();
        report.check("reset/equal", true, "200 of 200");
        let expected = json!({
            "report": "bench/reset", "revision": "abc", "clock": "virtual",
            "host": {"kernel": "6.12", "cpu": "a processor", "cpus": 2, "box": true},
            "rows": [{"name": "reset/pages", "unit": "ms", "p50": 0.25, "p99": 0.25,
                      "p25": 0.25, "p75": 0.25, "n": 1, "params": {"pages": 50}}],
            "floor": [], "peers": [],
            "checks": [{"name": "reset/equal", "ok": true, "detail": "200 of 200"}]
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let report = report();
        report.write(&path).unwrap();
        assert_eq!(Report::read(&path).unwrap(), report);
        fs::write(&path, "{}").unwrap();
        assert!(matches!(
            Report::read(&path),
            Err(ReportError::Shape { .. })
        ));
    }

    #[test]
    fn a_report_without_checks_proves_nothing() {
        let mut report = report();
        assert!(!report.ok());
        report.check("one", true, "");
        assert!(report.ok());
        report.check("two", false, "");
        assert!(!report.ok());
    }
}
