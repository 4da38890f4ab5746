//! `cargo xtask demo`: prepares everything, then lets `snapback-bench` show a real function being
//! restored and reset, wherever KVM is.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::assets;
use crate::cache::Cache;
use crate::execution;
use crate::host_box::{Clock, Settings};
use crate::job::Job;
use crate::packages;
use crate::place::{self, Place};
use crate::process;
use crate::workspace;

/// How long the demonstration itself may take.
const LIMIT: Duration = Duration::from_secs(900);

/// Runs the demonstration; the result is its exit status.
pub fn run(json: Option<&Path>, clock: Clock) -> Result<u8> {
    packages::ensure()?;
    let cache = Cache::open()?;
    let assets = assets::make(&cache)?;
    eprintln!("  .. build snapback, snapback-vmm and snapback-bench");
    process::visible(workspace::cargo().args([
        "build",
        "--release",
        "--package=snapback",
        "--package=snapback-vmm",
        "--package=snapback-bench",
    ]))?;
    let binaries = workspace::target().join("release");
    let place = Place::choose(&binaries)?;
    eprintln!("  ok the demonstration runs {}", place.describe());

    let results = tempfile::Builder::new()
        .prefix("snapback-demo-")
        .tempdir()
        .context("cannot create a temporary directory for the report")?;
    let report = results.path().join("report.json");
    let mut words = vec![
        path_word(&binaries.join("snapback-bench")),
        "demo".to_owned(),
        "--assets".to_owned(),
        path_word(&assets),
        "--bin-dir".to_owned(),
        path_word(&binaries),
    ];
    if json.is_some() {
        words.extend(["--json".to_owned(), path_word(&report)]);
    }
    let mut job = Job::new(words)?;
    job.shares.push(results.path().to_owned());
    let settings = Settings {
        clock,
        ..place::default_settings(LIMIT)
    };
    let outcome = place.run(&cache, &settings, job, &mut execution::pass_on)?;
    if let Some(trouble) = outcome.trouble() {
        eprintln!("error: the demonstration failed: {trouble}");
    }
    // A demonstration that failed may have written what it found out.
    if let Some(json) = json
        && (report.exists() || outcome.code() == 0)
    {
        fs::copy(&report, json)
            .with_context(|| format!("cannot write the report to {}", json.display()))?;
    }
    Ok(outcome.code())
}

fn path_word(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
