//! From samples to rows, and from rows to checks.

use serde_json::{Value, json};

use super::footprint::Footprint;
use super::plan::Setting;
use crate::report::table::number;
use crate::report::{Report, Row, Samples, repeat};
use crate::series::{Sample, Series};

/// KiB of a MiB.
const KIB: f64 = 1024.0;

/// A target: its check's name, the row, what `runtime` the row is of, and the most that
/// its median may be.
const TARGETS: [(&str, &str, &str, f64); 6] = [
    ("restore/target_a", "restore/a", "provided", 0.20),
    ("restore/target_a", "restore/a", "python", 0.20),
    ("restore/target_b", "restore/b", "provided", 1.0),
    ("restore/target_b", "restore/b", "python", 1.0),
    ("restore/target_provided", "restore/answer", "provided", 2.0),
    ("restore/target_python", "restore/answer", "python", 4.0),
];
/// Most memory of its own that a microVM may have while it is idle, its process included,
/// in MiB.
const PRIVATE_MIB: f64 = 4.0;
/// Most times that the median goes into the 99th percentile of fifty at once.
const SPREAD: f64 = 5.0;
/// A cold cache with a working set takes at most this share of the faults without.
const FAULT_SHARE: f64 = 0.25;

/// Adds the rows of one setting.
pub fn rows(report: &mut Report, runtime: &str, setting: &Setting, series: &Series) {
    let params = || setting.params(runtime);
    type Clock = fn(&Sample) -> u64;
    let clocks: [(&str, Clock); 6] = [
        ("restore/a", |s| s.record.enter_ns),
        ("restore/command", |s| s.record.restore_ns),
        ("restore/b", |s| s.record.resume_ns),
        ("restore/answer", |s| {
            s.record.resume_ns + s.record.function_ns
        }),
        ("restore/function", |s| s.record.function_ns),
        ("restore/c", Sample::latency_ns),
    ];
    for (name, clock) in clocks {
        report.add(series.times(clock).row(name, params()));
    }
    let faults = series.counts("faults", |s| s.record.userfaults);
    report.add(faults.row("restore/userfaults", params()));
    if let Some(count) = series.huge_pages {
        let mut huge = Samples::new("pages");
        huge.push(crate::report::whole(count));
        report.add(huge.row("restore/huge_pages", params()));
    }
    let wanted = if setting.blank_pool { "hit" } else { "miss" };
    let as_wanted = |s: &&Sample| s.record.blank_pool.as_deref() == Some(wanted);
    let (all, right) = (
        series.samples.len(),
        series.samples.iter().filter(as_wanted).count(),
    );
    report.check(
        "restore/setting",
        all == right && all == setting.rounds * setting.concurrency,
        format!("{runtime}: {setting}: {right} of {all} requests found a {wanted}"),
    );
}

/// Adds what one microVM uses, and the faults that the first requests had.
pub fn footprint(report: &mut Report, runtime: &str, footprint: Footprint, userfaults: u64) {
    let mut add = |name: &str, unit: &'static str, value: f64| {
        let mut samples = Samples::new(unit);
        samples.push(value);
        report.add(samples.row(name, [("runtime", json!(runtime))]));
    };
    let mib = |kib: u64| crate::report::whole(kib) / KIB;
    add("restore/private_memory", "MiB", mib(footprint.private_kib));
    add("restore/bytes_copied", "MiB", mib(footprint.copied_kib));
    add(
        "restore/faults_of_first",
        "faults",
        crate::report::whole(userfaults),
    );
    if let Some(exits) = footprint.exits {
        add("restore/exits", "exits", crate::report::whole(exits));
    }
}

/// Holds the rows against the targets.
pub fn check(report: &mut Report) {
    let mut checks = Vec::new();
    for (name, row, runtime, most) in TARGETS {
        let headline = |r: &&Row| r.name == row && is_headline(r, runtime);
        if let Some(row) = report.rows.iter().find(headline) {
            let detail = format!("{runtime}: {} ms, at most {most} ms", number(row.p50));
            checks.push((name.to_owned(), row.p50 <= most, detail));
        }
    }
    checks.extend(little_memory(report));
    checks.extend(no_second_userfault(report));
    checks.extend(fewer_faults(report));
    checks.extend(fifty_at_once(report));
    for (name, ok, detail) in checks {
        report.check(&name, ok, detail);
    }
    repeat::check_but(report, "restore/repeatable", heard_later);
}

/// Why the agent did not hear of a confirmation at the same time in both series: it is not
/// woken for it as soon as it comes, but with the answer, where there is one processor. Known
/// from the answer, which came at the same time.
fn heard_later(report: &Report, one: &Row) -> Option<String> {
    if one.name != "restore/b" && one.name != "restore/function" {
        return None;
    }
    let mut rows = report.rows.iter();
    let answer = rows.find(|row| row.name == "restore/answer" && row.params == one.params)?;
    let second = repeat::again(report, answer)?;
    repeat::is_close(answer, second).then(|| {
        format!(
            "the agent heard of the confirmation earlier or later, and of the answer after {} \
             and {} ms",
            number(answer.p50),
            number(second.p50)
        )
    })
}

type Verdict = Option<(String, bool, String)>;

fn param<'a>(row: &'a Row, name: &str) -> Option<&'a Value> {
    row.params.get(name)
}

fn has(row: &Row, wanted: &[(&str, Value)]) -> bool {
    wanted
        .iter()
        .all(|(name, value)| param(row, name) == Some(value))
}

/// One request at a time, warm, with everything on.
fn is_headline(row: &Row, runtime: &str) -> bool {
    has(
        row,
        &[
            ("runtime", json!(runtime)),
            ("concurrency", json!(1)),
            ("cache", json!("warm")),
            ("prefetch", json!(true)),
            ("blank_pool", json!(true)),
            ("fill", json!("background")),
            ("repeat", json!(1)),
        ],
    )
}

fn little_memory(report: &Report) -> Vec<(String, bool, String)> {
    let rows = report.rows.iter();
    let rows = rows.filter(|row| row.name == "restore/private_memory");
    rows.map(|row| {
        let runtime = param(row, "runtime").and_then(Value::as_str);
        let detail = format!(
            "{}: {} MiB beside another one, after a request and its reset, at most {PRIVATE_MIB} MiB",
            runtime.unwrap_or_default(),
            number(row.p50)
        );
        let ok = row.p50 <= PRIVATE_MIB;
        ("restore/private_memory".to_owned(), ok, detail)
    })
    .collect()
}

fn no_second_userfault(report: &Report) -> Verdict {
    let rows = || {
        report
            .rows
            .iter()
            .filter(|r| r.name == "restore/userfaults")
            .filter(|r| has(r, &[("cache", json!("warm")), ("concurrency", json!(1))]))
    };
    let most = rows()
        .map(|row| row.p99)
        .fold(None, |most: Option<f64>, p99| {
            Some(most.map_or(p99, |most| most.max(p99)))
        })?;
    let detail = format!("at most {} in a restore on a warm cache", number(most));
    Some(("restore/no_userfault".to_owned(), most == 0.0, detail))
}

fn fewer_faults(report: &Report) -> Verdict {
    let cold = |prefetch: bool| {
        report
            .rows
            .iter()
            .filter(|r| r.name == "restore/userfaults")
            .find(|r| {
                has(
                    r,
                    &[("cache", json!("cold")), ("prefetch", json!(prefetch))],
                )
            })
            .map(|row| row.p50)
    };
    let (with, without) = (cold(true)?, cold(false)?);
    let detail = format!(
        "{} with a working set, {} without",
        number(with),
        number(without)
    );
    let ok = with <= without * FAULT_SHARE;
    Some(("restore/fewer_faults".to_owned(), ok, detail))
}

fn fifty_at_once(report: &Report) -> Verdict {
    let mut rows = report.rows.iter();
    let row = rows.find(|r| r.name == "restore/c" && has(r, &[("concurrency", json!(50))]))?;
    let detail = format!("p50 {} ms, p99 {} ms", number(row.p50), number(row.p99));
    let ok = row.p99 <= row.p50 * SPREAD;
    Some(("restore/fifty_at_once".to_owned(), ok, detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_confirmation_that_was_heard_later_is_told_by_the_answer_that_came_in_time() {
        for (answer, ok) in [(5.05, true), (6.0, false)] {
            let mut report = report();
            let rows = [("restore/b", 4.0, 3.0), ("restore/answer", 5.0, answer)];
            for (name, first, second) in rows {
                for (repeat, value) in [(1, first), (2, second)] {
                    let mut samples = Samples::new("ms");
                    samples.push(value);
                    report.add(samples.row(name, [("repeat", json!(repeat))]));
                }
            }
            repeat::check_but(&mut report, "restore/repeatable", heard_later);
            assert_eq!(report.checks[0].ok, ok, "{:?}", report.checks[0]);
        }
    }
}
