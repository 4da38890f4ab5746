//! The invoke benchmark: what a request to a function that does nothing costs when its
//! microVM is there, from the API and back to it. The reset comes after the answer and
//! is not part of it.
//!
//! ```text
//!  API in ─► place ─► Run ─► Resumed ─► event ─► runtime ─► answer ─► API out
//!  ├──────────────────────── invoke/warm ────────────────────────────────┤
//!                     ├ invoke/resume ┤├──── invoke/function ────┤
//!  invoke/agent: the rest, HTTP on both sides and the choice of the place
//! ```
//!
//! The event is in the guest when it confirms, so `invoke/resume` ends where the function is
//! about to begin. Where there is one processor, as in the box, the caller has the highest
//! priority: the answer is its own when it is out, and not when the agent and the reset have
//! done with the processor.

use std::path::PathBuf;

use rustix::process::setpriority_process;
use serde_json::json;
use snapback_proto::words::chain;

use crate::calls::{self, CallError};
use crate::floor::{self, FloorError};
use crate::node::{Node, NodeError};
use crate::progress;
use crate::report::table::number;
use crate::report::{Report, repeat};
use crate::series::{Sample, Series};
use crate::subjects::{self, Subject, SubjectError};

/// Requests before the first sample: one that is recorded, one that meets a fresh
/// microVM, and more until its memory has no page left to be made.
const WARM_UP: usize = 4;
/// Samples of each of the two series.
const ROUNDS: usize = 50;
const QUICK_ROUNDS: usize = 5;
/// Lines of the agent's log that are shown after a failure.
const LOG_LINES: usize = 60;
/// The most that the median of `invoke/warm` may be, in milliseconds.
const TARGETS: [(&str, f64); 2] = [("provided", 1.0), ("python", 2.5)];
/// The highest, as `nice` counts.
const PRIORITY: i32 = -20;
/// One microVM at a time, which is recorded and prefetched for nothing here.
const CONFIGURATION: &str = "[pools]\nblank = 0\n[pager]\nworking_sets = false\n";

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel, guest-init and root file systems.
    pub assets: PathBuf,
    /// Where `snapback` and `snapback-vmm` are.
    pub bin_dir: PathBuf,
    /// Where the functions are that had to be built.
    pub functions: PathBuf,
    /// Few samples.
    pub quick: bool,
}

/// The benchmark broke off.
#[derive(Debug, thiserror::Error)]
enum InvokeError {
    #[error(transparent)]
    Subject(#[from] SubjectError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Floor(#[from] FloorError),
    #[error("the caller's priority cannot be raised")]
    Priority(#[source] rustix::io::Errno),
}

/// Measures everything. Progress goes to standard error; the report has at least one
/// failed check if anything went wrong.
pub async fn run(options: &Options) -> Report {
    let mut report = Report::new("bench/invoke");
    if let Err(error) = measure(options, &mut report).await {
        report.check("invoke/completed", false, chain(&error));
    }
    targets(&mut report);
    repeat::check(&mut report, "invoke/repeatable");
    report
}

async fn measure(options: &Options, report: &mut Report) -> Result<(), InvokeError> {
    report.floor.extend(floor::page_copy()?);
    progress::step("boot each function once and snapshot it");
    let mut node = Node::start(&options.bin_dir, &options.assets, CONFIGURATION)?;
    node.ready().await?;
    let outcome = drive(options, &node, report).await;
    if outcome.is_err() {
        progress::log(&node.log_tail(LOG_LINES));
    }
    outcome?;
    Ok(node.stop().await?)
}

async fn drive(options: &Options, node: &Node, report: &mut Report) -> Result<(), InvokeError> {
    let (bin_dir, built) = (&options.bin_dir, &options.functions);
    let rounds = if options.quick { QUICK_ROUNDS } else { ROUNDS };
    let subjects = subjects::create(bin_dir, built, node.socket()).await?;
    // What was started before keeps its own.
    setpriority_process(None, PRIORITY).map_err(InvokeError::Priority)?;
    for subject in subjects {
        progress::step(&format!("{}: warm requests", subject.runtime));
        series(node, &subject, WARM_UP).await?;
        for repeat in [1, 2] {
            let series = series(node, &subject, rounds).await?;
            rows(report, subject.runtime, repeat, &series);
        }
    }
    Ok(())
}

async fn series(node: &Node, subject: &Subject, rounds: usize) -> Result<Series, CallError> {
    let client = node.client();
    let mut series = Series::default();
    for _ in 0..rounds {
        calls::at_rest(&client, 0).await?;
        let sample = calls::request(&client, &subject.name, "{}").await?;
        series.samples.push(sample);
    }
    Ok(series)
}

/// What the agent itself needed, in nanoseconds.
fn agent_ns(sample: &Sample) -> u64 {
    let guest = sample.record.resume_ns + sample.record.function_ns;
    sample.latency_ns().saturating_sub(guest)
}

fn rows(report: &mut Report, runtime: &str, repeat: u32, series: &Series) {
    type Step = fn(&Sample) -> u64;
    let steps: [(&str, Step); 4] = [
        ("invoke/warm", Sample::latency_ns),
        ("invoke/agent", agent_ns),
        ("invoke/resume", |s| s.record.resume_ns),
        ("invoke/function", |s| s.record.function_ns),
    ];
    let params = || [("runtime", json!(runtime)), ("repeat", json!(repeat))];
    for (name, step) in steps {
        report.add(series.times(step).row(name, params()));
    }
    let all = series.samples.len();
    let warm = series.samples.iter().filter(|s| !s.record.fresh).count();
    report.check(
        "invoke/setting",
        warm == all && all > 0,
        format!("{runtime}: {warm} of {all} requests found their microVM"),
    );
}

fn targets(report: &mut Report) {
    for (runtime, most) in TARGETS {
        let mut rows = report.rows.iter();
        let row = rows.find(|row| {
            row.name == "invoke/warm"
                && row.params.get("runtime") == Some(&json!(runtime))
                && row.params.get("repeat") == Some(&json!(1))
        });
        let (ok, detail) = match row {
            Some(row) => (
                row.p50 <= most,
                format!("{} ms, at most {most} ms", number(row.p50)),
            ),
            None => (false, "not measured".to_owned()),
        };
        report.check(&format!("invoke/target_{runtime}"), ok, detail);
    }
}
