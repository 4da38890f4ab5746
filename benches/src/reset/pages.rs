//! Resets by the number of pages that a request wrote.

use std::time::Duration;

use serde_json::json;
use snapback_proto::control::ResetReport;

use super::ResetError;
use super::writer::{self, Life, Work};
use crate::machine::Machine;
use crate::progress;
use crate::report::{Report, Samples, milliseconds, whole};

/// Pages of a request.
const PAGES: [u32; 6] = [0, 50, 200, 1000, 5000, 20_000];
/// Requests after which no page is hot that is not written any more.
const COOL_DOWN: u32 = 70;
/// Requests before the first sample: pages become the machine's own, and hot.
const WARM_UP: u32 = 4;
/// Samples of each row.
const ROUNDS: u32 = 64;
const QUICK_ROUNDS: u32 = 8;
/// Above so many pages, fewer samples are enough.
const MANY: u32 = 2000;

/// Which pages requests write, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// The same ones: they are hot, as far as there is room.
    Hot,
    /// Others than the request before: all are cold.
    Cold,
}

impl Policy {
    fn word(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Cold => "cold",
        }
    }

    /// The choice of the `nth` request.
    fn choice(self, nth: u32) -> u32 {
        match self {
            Self::Hot => 0,
            Self::Cold => nth % 2,
        }
    }
}

/// Adds the rows.
pub fn measure(machine: &Machine, quick: bool, report: &mut Report) -> Result<(), ResetError> {
    few(machine, quick, report)?;
    for pages in PAGES {
        for policy in [Policy::Hot, Policy::Cold] {
            // Two choices do not fit the guest, or there is nothing to choose.
            if policy == Policy::Cold && (pages == 0 || pages > 10_000) {
                continue;
            }
            progress::step(&format!("{pages} pages, {}", policy.word()));
            let work = |nth| Work::Pages(pages, policy.choice(nth));
            if policy == Policy::Cold {
                series(machine, COOL_DOWN, |_| Work::Pages(0, 0))?;
            }
            series(machine, WARM_UP, work)?;
            let rounds = match (quick, pages > MANY) {
                (true, _) => QUICK_ROUNDS,
                (false, true) => ROUNDS / 4,
                (false, false) => ROUNDS,
            };
            let lives = series(machine, rounds, work)?;
            rows(report, json!(pages), policy, &lives);
            if pages > 0 {
                report.add(first_write(pages, &lives).row(
                    "reset/first_write",
                    [("pages", json!(pages)), ("policy", json!(policy.word()))],
                ));
            }
            let name = format!("{pages} pages, {}", policy.word());
            super::compare(machine, &name, report)?;
        }
    }
    again(machine, quick, report)
}

/// A guest that has woken up and waits: fewer pages than any request has.
fn few(machine: &Machine, quick: bool, report: &mut Report) -> Result<(), ResetError> {
    progress::step("no request at all");
    let rounds = if quick { QUICK_ROUNDS } else { ROUNDS };
    series(machine, WARM_UP, |_| Work::Nothing)?;
    let lives = series(machine, rounds, |_| Work::Nothing)?;
    rows(report, json!("none"), Policy::Hot, &lives);
    super::compare(machine, "no request", report)
}

/// Writes without a reset before them: what the first write after one has to be held
/// against.
fn again(machine: &Machine, quick: bool, report: &mut Report) -> Result<(), ResetError> {
    let pages = 1000;
    let (stream, _) = writer::run(machine, Work::Pages(pages, 0))?;
    let mut samples = Samples::new("ns");
    for _ in 0..if quick { QUICK_ROUNDS } else { ROUNDS } {
        let wrote = writer::ask(&stream, Work::Pages(pages, 0))?;
        samples.push(wrote.as_secs_f64() * 1e9 / f64::from(pages));
    }
    report.add(samples.row(
        "reset/first_write",
        [("pages", json!(pages)), ("policy", json!("no reset"))],
    ));
    machine.reset()?;
    Ok(())
}

fn series(
    machine: &Machine,
    rounds: u32,
    work: impl Fn(u32) -> Work,
) -> Result<Vec<Life>, ResetError> {
    (0..rounds)
        .map(|nth| writer::live(machine, work(nth)))
        .collect()
}

fn first_write(pages: u32, lives: &[Life]) -> Samples {
    let mut samples = Samples::new("ns");
    for life in lives {
        samples.push(life.wrote.as_secs_f64() * 1e9 / f64::from(pages));
    }
    samples
}

fn rows(report: &mut Report, pages: serde_json::Value, policy: Policy, lives: &[Life]) {
    type Step = fn(&ResetReport) -> u64;
    let steps: [(&str, Step); 9] = [
        ("reset/pages", |r| r.total_ns),
        ("reset/pause", |r| r.pause_ns),
        ("reset/state", |r| r.state_ns),
        ("reset/state_host", |r| r.host_ns),
        ("reset/state_devices", |r| r.devices_ns),
        ("reset/state_interrupts", |r| r.interrupts_ns),
        ("reset/state_processors", |r| r.processors_ns),
        ("reset/collect", |r| r.collect_ns),
        ("reset/copy", |r| r.pages_ns.saturating_sub(r.collect_ns)),
    ];
    let params = || [("pages", pages.clone()), ("policy", json!(policy.word()))];
    for (name, step) in steps {
        let mut samples = Samples::new("ms");
        for life in lives {
            samples.push(milliseconds(Duration::from_nanos(step(&life.reset))));
        }
        report.add(samples.row(name, params()));
    }
    let counts: [(&str, Step); 2] = [
        ("reset/dirty_pages", |r| r.pages),
        ("reset/hot_pages", |r| r.hot_pages),
    ];
    for (name, count) in counts {
        let mut samples = Samples::new("pages");
        for life in lives {
            samples.push(whole(count(&life.reset)));
        }
        report.add(samples.row(name, params()));
    }
}
