//! `cargo xtask test`: everything that has to hold before a change is good.
//!
//! The last line is always `N passed, N failed`. A check that is no test (formatting, lints, a
//! build, the box itself) counts as one failure when it fails, and as nothing when it passes.

mod again;
mod batch;
mod libtest;
mod programs;

use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::assets;
use crate::boto3;
use crate::cache::Cache;
use crate::examples;
use crate::execution::Stream;
use crate::job::Job;
use crate::native;
use crate::packages;
use crate::place::{self, Place};
use crate::process;
use crate::workspace;
use batch::Ended;
use libtest::{ProgramTally, Tally};
use programs::TestProgram;

/// How long one program of unit tests may take.
const UNIT_LIMIT: Duration = Duration::from_secs(600);

/// Set to make what tests compare with anew: golden snapshots.
const BLESS: &str = "SNAPBACK_BLESS";

/// What to test.
pub struct Options {
    /// Only integration tests whose name contains this, and no static checks.
    pub filter: Option<String>,
    /// How long all integration tests together may take.
    pub limit: Duration,
}

/// Runs the tests; the result is the exit status.
pub fn run(options: &Options) -> u8 {
    let mut report = Report::default();
    if let Err(error) = all(options, &mut report) {
        eprintln!("error: {error:#}");
        report.fail("the tests could not be run to their end".to_owned());
    }
    report.close()
}

/// What has been found so far.
#[derive(Default)]
struct Report {
    tally: Tally,
    unwell: Vec<String>,
    /// Tests that failed among others and passed alone.
    passed_alone: Vec<String>,
}

impl Report {
    fn fail(&mut self, what: String) {
        self.tally += Tally::FAILURE;
        self.unwell.push(what);
    }

    fn add(&mut self, tally: Tally, unwell: impl IntoIterator<Item = String>) {
        self.tally += tally;
        self.unwell.extend(unwell);
    }

    /// Runs a check that either passes or fails as a whole.
    fn check(&mut self, what: &str, command: &mut Command) {
        heading(what);
        if let Err(error) = process::visible(command) {
            eprintln!("error: {error:#}");
            self.fail(what.to_owned());
        }
    }

    /// Says what was found, and the closing line.
    fn close(self) -> u8 {
        for what in &self.unwell {
            eprintln!("FAILED: {what}");
        }
        for test in &self.passed_alone {
            eprintln!("PASSED ONLY ALONE: {test}");
        }
        println!("{} passed, {} failed", self.tally.passed, self.tally.failed);
        u8::from(self.tally.failed > 0)
    }
}

fn all(options: &Options, report: &mut Report) -> Result<()> {
    packages::ensure()?;
    let cache = Cache::open()?;
    let whole = options.filter.is_none();
    if whole {
        report.check(
            "format",
            workspace::cargo().args(["fmt", "--all", "--check"]),
        );
        report.check(
            "clippy",
            workspace::cargo()
                .args(["clippy", "--workspace", "--all-targets"])
                .args(["--", "-D", "warnings"]),
        );
    }
    heading("build");
    // Builds the agent's and the VMM's programs too: their own tests need them. Asking for
    // them alone would build half of the dependencies again, with other features.
    let programs = programs::build()?;
    let (integration, unit): (Vec<_>, Vec<_>) =
        programs.into_iter().partition(|program| program.needs_kvm);
    if whole {
        heading("unit tests");
        for program in &unit {
            run_unit(program, report)?;
        }
        documentation_tests(report)?;
    }
    heading("assets");
    let assets = assets::make(&cache)?;
    let examples = examples::make(&cache)?;
    let boto3 = boto3::make(&cache)?;

    let binaries = workspace::target().join("debug");
    let place = Place::choose(&binaries)?;
    heading(&format!("integration tests, {}", place.describe()));
    let prepare = |script| -> Result<Job> {
        let mut job = Job::new(vec!["sh".to_owned(), "-c".to_owned(), script])?;
        job.set("SNAPBACK_ASSETS", assets.to_string_lossy());
        job.set("SNAPBACK_BIN_DIR", binaries.to_string_lossy());
        job.set("SNAPBACK_EXAMPLES", examples.to_string_lossy());
        job.set("SNAPBACK_PYTHON", &boto3.python);
        job.set("SNAPBACK_BOTO3", boto3.packages.to_string_lossy());
        if let Some(bless) = std::env::var_os(BLESS) {
            // Tests write what they would compare with.
            job.set(BLESS, bless.to_string_lossy());
            job.shares.push(workspace::root().join("tests/goldens"));
        }
        Ok(job)
    };
    let before = report.tally.ran();
    let run = |programs: Vec<Vec<TestProgram>>, select: &Selection<'_>| -> Result<Vec<Ended>> {
        let jobs = programs.into_iter().map(|programs| {
            let job = prepare(batch::script(&programs, select))?;
            Ok((programs, job))
        });
        let jobs = jobs.collect::<Result<Vec<_>>>()?;
        run_batches(place, &cache, options.limit, jobs)
    };
    let filter: Vec<String> = options.filter.iter().cloned().collect();
    let ended = run(batch::split(&integration, place), &|_| filter.clone())?;
    let failed = again::choose(place, &ended);
    if failed.is_empty() {
        for batch in ended {
            report.add(batch.tally, batch.unwell);
        }
    } else {
        heading("the tests that failed, alone in a fresh box");
        let programs = failed.iter().map(|of| of.program.clone()).collect();
        let second = run(vec![programs], &|program| {
            again::selection(&failed, program)
        })?;
        let second = second.into_iter().next().unwrap_or_default();
        let (sum, passed) = again::judge(ended, &failed, second);
        report.add(sum.tally, sum.unwell);
        report.passed_alone = passed;
    }
    if report.tally.ran() == before {
        report.fail("no integration test ran".to_owned());
    }
    Ok(())
}

/// The arguments that choose among a program's tests.
type Selection<'a> = dyn Fn(&TestProgram) -> Vec<String> + 'a;

/// Runs each batch on a host of its own, all at the same time.
fn run_batches(
    place: Place,
    cache: &Cache,
    limit: Duration,
    jobs: Vec<(Vec<TestProgram>, Job)>,
) -> Result<Vec<Ended>> {
    let settings = place::default_settings(limit);
    let run = |(programs, job): (Vec<TestProgram>, Job)| {
        let mut follower = batch::Follower::new(&programs);
        let outcome = place.run(cache, &settings, job, &mut |stream, bytes| {
            follower.output(stream, bytes)
        })?;
        Ok(follower.finish(&outcome))
    };
    thread::scope(|scope| {
        let run = &run;
        let running: Vec<_> = jobs
            .into_iter()
            .map(|job| scope.spawn(move || run(job)))
            .collect();
        let died = |_| Err(anyhow::anyhow!("a batch of tests could not be followed"));
        running
            .into_iter()
            .map(|batch| batch.join().unwrap_or_else(died))
            .collect()
    })
}

/// Runs one program of tests that need nothing special.
fn run_unit(program: &TestProgram, report: &mut Report) -> Result<()> {
    println!("-- {}", program.name);
    let mut job = Job::new(vec![program.executable.to_string_lossy().into_owned()])?;
    job.directory.clone_from(&program.directory);
    job.set("CARGO_MANIFEST_DIR", program.directory.to_string_lossy());
    let (tally, unwell) = counted(job, &program.name)?;
    report.add(tally, unwell);
    Ok(())
}

fn documentation_tests(report: &mut Report) -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let words = [
        cargo.as_str(),
        "test",
        "--workspace",
        "--doc",
        "--no-fail-fast",
    ];
    let mut job = Job::new(words.map(str::to_owned).to_vec())?;
    job.directory = workspace::root().to_owned();
    let (tally, unwell) = counted(job, "documentation tests")?;
    report.add(tally, unwell);
    Ok(())
}

/// Runs a job on this host and sums up the results it prints.
fn counted(job: Job, name: &str) -> Result<(Tally, Vec<String>)> {
    let mut program = ProgramTally::default();
    let mut text = Vec::new();
    let outcome = native::run(&job, UNIT_LIMIT, &mut |stream, bytes| {
        if stream == Stream::Out {
            text.extend_from_slice(bytes);
        }
        crate::execution::pass_on(stream, bytes)
    })
    .with_context(|| format!("cannot run {name}"))?;
    for line in String::from_utf8_lossy(&text).lines() {
        program.line(line);
    }
    let tally = program.end(outcome.trouble().is_none().then(|| outcome.code()));
    let unwell = (tally.failed > 0).then(|| match outcome.trouble() {
        Some(trouble) => format!("{name}: {trouble}"),
        None => name.to_owned(),
    });
    Ok((tally, unwell.into_iter().collect()))
}

fn heading(what: &str) {
    println!("\n== {what}");
}
