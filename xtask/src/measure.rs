//! `cargo xtask demo` and `cargo xtask bench`: prepare everything, then let
//! `snapback-bench` measure wherever KVM is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::assets;
use crate::cache::Cache;
use crate::execution;
use crate::host_box::{Clock, Settings};
use crate::initramfs;
use crate::job::Job;
use crate::packages;
use crate::peers;
use crate::place::{self, Place};
use crate::process;
use crate::static_program;
use crate::workspace;

/// How long the demonstration itself may take.
const DEMO_LIMIT: Duration = Duration::from_secs(900);
/// How long a benchmark may take: under emulation, a microVM starts slowly.
const BENCH_LIMIT: Duration = Duration::from_secs(5400);
/// Fifty microVMs at once, and two copies of a peer's memory.
const BENCH_MEMORY_MIB: u32 = 8192;

/// The report of many requests, in a directory of its own.
const ENDURED: &str = "endured.json";

/// Functions that are programs: the folder in `benches/functions`, the package.
const FUNCTIONS: [(&str, &str); 1] = [("noop-rust", "snapback-bench-noop")];

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Benchmark {
    /// How long a request waits for a microVM that does not exist.
    Restore,
    /// What it costs to put a microVM back to its snapshot.
    Reset,
    /// What a request costs whose microVM is there.
    Invoke,
}

impl Benchmark {
    const fn name(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::Reset => "reset",
            Self::Invoke => "invoke",
        }
    }

    /// PID 1 of a guest of its own, if it has one: the flag and the package.
    const fn guest(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Restore => Some(("--peer-init", "snapback-peer-init")),
            Self::Reset => Some(("--dirty-init", "snapback-dirty-init")),
            Self::Invoke => None,
        }
    }
}

/// Where results go, beside the terminal.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The report as JSON.
    pub json: Option<PathBuf>,
    /// The medians as a picture.
    pub plot: Option<PathBuf>,
}

/// Runs the demonstration; the result is its exit status.
pub fn demo(json: Option<PathBuf>, clock: Clock) -> Result<u8> {
    packages::ensure()?;
    let settings = Settings {
        clock,
        ..place::default_settings(DEMO_LIMIT)
    };
    let files = Files { json, plot: None };
    run(vec!["demo".to_owned()], Vec::new(), &files, &settings)
}

/// Makes the functions of `benches/functions` that are programs; the result is the
/// directory with a folder of each.
fn functions() -> Result<PathBuf> {
    let to = workspace::target().join("bench-functions");
    for (folder, package) in FUNCTIONS {
        let made = to.join(folder);
        fs::create_dir_all(&made).with_context(|| format!("cannot create {}", made.display()))?;
        let description = workspace::root().join("benches/functions").join(folder);
        let program = static_program::build(package)?;
        let parts = [
            (description.join("function.toml"), "function.toml"),
            (program, "bootstrap"),
        ];
        for (from, name) in parts {
            let to = made.join(name);
            fs::copy(&from, &to).with_context(|| format!("cannot make {}", to.display()))?;
        }
    }
    Ok(to)
}

/// Runs a benchmark; the result is its exit status.
pub fn bench(benchmark: Benchmark, quick: bool, files: &Files, clock: Clock) -> Result<u8> {
    packages::ensure()?;
    let (mut words, mut visible) = (vec![benchmark.name().to_owned()], Vec::new());
    words.extend(["--functions".to_owned(), path_word(&functions()?)]);
    if let Some((flag, package)) = benchmark.guest() {
        let image = workspace::target().join(format!("{package}.cpio"));
        initramfs::make(package, &image)?;
        words.extend([flag.to_owned(), path_word(&image)]);
    }
    if benchmark == Benchmark::Restore {
        let peers = peers::find(&Cache::open()?)?;
        words.extend(peers.words);
        visible = peers.visible;
    }
    if quick {
        words.push("--quick".to_owned());
    }
    let settings = Settings {
        clock,
        memory_mib: BENCH_MEMORY_MIB,
        timeout: BENCH_LIMIT,
    };
    let endured = match benchmark {
        Benchmark::Reset => Some(endure(&words, &settings)?),
        Benchmark::Restore | Benchmark::Invoke => None,
    };
    if let Some(directory) = &endured {
        let report = directory.path().join(ENDURED);
        words.extend(["--endured".to_owned(), path_word(&report)]);
        visible.push(directory.path().to_owned());
    }
    run(words, visible, files, &settings)
}

/// Has one microVM serve many requests; the result is the directory with the report. It is
/// about what they leave behind and not about time, so it runs where the box is fastest.
fn endure(words: &[String], settings: &Settings) -> Result<tempfile::TempDir> {
    let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
    let name = Some("endure".to_owned());
    let words = name.into_iter().chain(words.iter().skip(1).cloned());
    let files = Files {
        json: Some(directory.path().join(ENDURED)),
        plot: None,
    };
    let settings = Settings {
        clock: Clock::Fast,
        ..*settings
    };
    // What failed is in the report, and fails the benchmark.
    run(words.collect(), Vec::new(), &files, &settings)?;
    Ok(directory)
}

/// Builds what is needed, runs `snapback-bench` with `words` where it sees the directories
/// `visible`, and brings its files back.
fn run(
    words: Vec<String>,
    visible: Vec<PathBuf>,
    files: &Files,
    settings: &Settings,
) -> Result<u8> {
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
    eprintln!("  ok this runs {}", place.describe());

    let results = tempfile::Builder::new()
        .prefix("snapback-results-")
        .tempdir()
        .context("cannot create a temporary directory for the results")?;
    let wanted = [("--json", &files.json), ("--plot", &files.plot)];
    let wanted = wanted.map(|(flag, to)| {
        let made = results.path().join(flag.trim_start_matches('-'));
        to.as_ref().map(|to| (flag, made, to))
    });
    let mut command = vec![path_word(&binaries.join("snapback-bench"))];
    command.extend(words);
    command.extend(["--assets".to_owned(), path_word(&assets)]);
    command.extend(["--bin-dir".to_owned(), path_word(&binaries)]);
    for (flag, made, _) in wanted.iter().flatten() {
        command.extend([(*flag).to_owned(), path_word(made)]);
    }
    let mut job = Job::new(command)?;
    job.shares.push(results.path().to_owned());
    job.visible.extend(visible);
    let outcome = place.run(&cache, settings, job, &mut execution::pass_on)?;
    if let Some(trouble) = outcome.trouble() {
        eprintln!("error: the measurement failed: {trouble}");
    }
    for (_, made, to) in wanted.iter().flatten() {
        // A run that failed may have written what it found out.
        if made.exists() || outcome.code() == 0 {
            fs::copy(made, to)
                .with_context(|| format!("cannot write the results to {}", to.display()))?;
        }
    }
    Ok(outcome.code())
}

fn path_word(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
