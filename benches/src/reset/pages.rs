//! Resets by the number of pages that a request wrote.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use snapback_proto::control::ResetReport;

use super::ResetError;
use super::steps;
use super::writer::{self, Life, Work};
use crate::machine::{Machine, prepare};
use crate::progress;
use crate::report::{Report, Samples};

/// Pages that a request writes on purpose. The guest writes some 150 more to serve it, so that
/// [`THOUSAND`] makes a thousand.
const PAGES: [u32; 6] = [0, 50, 200, THOUSAND, 5000, 20_000];
pub const THOUSAND: u32 = 850;
/// Requests after which no page is hot that is not written any more.
const COOL_DOWN: u32 = 70;
/// How long guests run that have no request, from the command that lets them: until they are
/// just entered, until they have gone to sleep again, and in between.
const CUT_AFTER_US: std::ops::RangeInclusive<u64> = 100..=130;
const CUT_STEP_US: usize = 2;
/// The pages that such lives wrote, by which they are told apart.
const FEW: [(u64, u64); 4] = [(20, 39), (40, 60), (61, 80), (81, 120)];
/// Those with fifty.
pub const FIFTY: &str = "40 to 60";
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

/// Guests that are cut short while they wake up: fewer pages than any request has. Where in
/// its code one is cut differs from life to life, so lives are told apart by what they wrote.
fn few(machine: &Machine, quick: bool, report: &mut Report) -> Result<(), ResetError> {
    progress::step("no request, guests that are cut short");
    let rounds = if quick { QUICK_ROUNDS } else { ROUNDS };
    // On one processor, a guest that wakes up would have it until it sleeps again.
    let _urgent = (
        Urgent::new(std::process::id())?,
        Urgent::new(machine.pid())?,
    );
    let cut = |micros| machine.cut_short(Duration::from_micros(micros));
    let mut resets = Vec::new();
    for micros in CUT_AFTER_US.step_by(CUT_STEP_US) {
        // Hot pages are copied whether they were written or not: those of longer lives cool.
        for _ in 0..COOL_DOWN {
            cut(micros)?;
        }
        for _ in 0..rounds {
            resets.push(cut(micros)?);
        }
    }
    for (least, most) in FEW {
        let wrote = |reset: &&ResetReport| (least..=most).contains(&reset.pages);
        let some: Vec<_> = resets.iter().filter(wrote).copied().collect();
        let params = [("wrote", json!(format!("{least} to {most}")))];
        steps::rows(report, &params, &some);
    }
    super::compare(machine, "no request", report)
}

/// A process whose main thread goes before all that have no real-time priority.
struct Urgent(u32);

impl Urgent {
    fn new(pid: u32) -> Result<Self, ResetError> {
        chrt(pid, ["--fifo", "1"])?;
        Ok(Self(pid))
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        // A process that is gone has no priority, either.
        let _ = chrt(self.0, ["--other", "0"]);
    }
}

fn chrt(pid: u32, [policy, priority]: [&str; 2]) -> Result<(), ResetError> {
    let mut command = Command::new("chrt");
    let command = command.args([policy, "--pid", priority, &pid.to_string()]);
    let done = command.stdin(Stdio::null()).status();
    let done = done.map_err(prepare("run chrt"))?;
    if !done.success() {
        let failed = std::io::Error::other(format!("it ended with {done}"));
        return Err(prepare("run chrt")(failed).into());
    }
    Ok(())
}

/// Writes without a reset before them: what the first write after one has to be held
/// against.
fn again(machine: &Machine, quick: bool, report: &mut Report) -> Result<(), ResetError> {
    let pages = THOUSAND;
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

/// The rows of such lives' resets.
fn rows(report: &mut Report, pages: serde_json::Value, policy: Policy, lives: &[Life]) {
    let resets: Vec<_> = lives.iter().map(|life| life.reset).collect();
    let params = [("pages", pages), ("policy", json!(policy.word()))];
    steps::rows(report, &params, &resets);
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
