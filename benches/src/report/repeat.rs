//! Whether a figure comes out twice: two series of the same combination, told apart
//! by the parameter `repeat` (1 and 2).

use serde_json::json;

use super::table::number;
use super::{Report, Row};

/// How much the medians of two series of the same combination may differ.
const REPEATABLE: f64 = 0.02;

/// Adds a check for each duration that was measured twice: the medians are close to each
/// other, or it is known why not.
pub fn check(report: &mut Report, name: &str) {
    check_but(report, name, |_, _| None);
}

/// As [`check`], where `why` may know a reason of its own, given the row of the first series.
pub fn check_but(report: &mut Report, name: &str, why: impl Fn(&Report, &Row) -> Option<String>) {
    let first = |row: &&Row| is_first(row) && row.unit == "ms";
    let pairs = report.rows.iter().filter(first);
    let pairs = pairs.filter_map(|one| Some((one, again(report, one)?)));
    let verdicts: Vec<_> = pairs
        .map(|(one, again)| {
            let difference = (one.p50 - again.p50).abs() / one.p50.max(f64::MIN_POSITIVE);
            let runtime = one.params.get("runtime").and_then(|value| value.as_str());
            let mut detail = format!(
                "{} {}: {} and {} ms, {:.1} % apart",
                one.name,
                runtime.unwrap_or_default(),
                number(one.p50),
                number(again.p50),
                difference * 100.0
            );
            let close = is_close(one, again);
            let why = match close {
                true => None,
                false => counts(report, one)
                    .or_else(|| spread(one, again))
                    .or_else(|| why(report, one)),
            };
            if let Some(why) = &why {
                detail = format!("{detail}: {why}");
            }
            (close || why.is_some(), detail)
        })
        .collect();
    for (ok, detail) in verdicts {
        report.check(name, ok, detail);
    }
}

fn is_first(row: &Row) -> bool {
    row.params.get("repeat") == Some(&json!(1))
}

/// Whether the medians of both series are as close as they should be.
#[must_use]
pub fn is_close(one: &Row, again: &Row) -> bool {
    (one.p50 - again.p50).abs() < REPEATABLE * one.p50.max(f64::MIN_POSITIVE)
}

/// The row of the second series.
#[must_use]
pub fn again<'a>(report: &'a Report, one: &Row) -> Option<&'a Row> {
    let mut params = one.params.clone();
    params.insert("repeat".to_owned(), json!(2));
    let mut rows = report.rows.iter();
    rows.find(|row| row.name == one.name && row.params == params)
}

/// What was counted in the two series and is not the same.
fn counts(report: &Report, one: &Row) -> Option<String> {
    let counted = |row: &&Row| row.unit != "ms" && row.params == one.params;
    let pairs = report.rows.iter().filter(counted);
    let pairs = pairs.filter_map(|row| Some((row, again(report, row)?)));
    let other = pairs.filter(|(one, again)| one.p50 != again.p50);
    let words: Vec<_> = other
        .map(|(one, again)| {
            let (first, second) = (number(one.p50), number(again.p50));
            format!("{} {first} and {second} {}", one.name, one.unit)
        })
        .collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// That each median lies in the middle half of the other series, if it does: what one series
/// has by itself is no difference between the two.
fn spread(one: &Row, again: &Row) -> Option<String> {
    let inside = |median: f64, of: &Row| (of.p25..=of.p75).contains(&median);
    (inside(one.p50, again) && inside(again.p50, one)).then(|| {
        format!(
            "the middle halves of both series have these values ({} to {} ms, {} to {} ms)",
            number(one.p25),
            number(one.p75),
            number(again.p25),
            number(again.p75)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Samples;
    use crate::report::tests::report;

    #[test]
    fn two_series_are_compared_and_one_alone_is_not() {
        let mut report = report();
        let rows = [
            ("a", 1, 1.0),
            ("a", 2, 1.01),
            ("b", 1, 1.0),
            ("b", 2, 1.05),
            ("c", 1, 1.0),
        ];
        for (name, repeat, value) in rows {
            let mut samples = Samples::new("ms");
            samples.push(value);
            report.add(samples.row(name, [("repeat", json!(repeat))]));
        }
        check(&mut report, "x/repeatable");
        let ok: Vec<bool> = report.checks.iter().map(|check| check.ok).collect();
        assert_eq!(ok, [true, false]);
        assert!(report.checks[1].detail.contains("5.0 % apart"));
    }

    fn add(report: &mut Report, name: &str, unit: &'static str, repeat: u32, values: &[f64]) {
        let mut samples = Samples::new(unit);
        values.iter().for_each(|value| samples.push(*value));
        report.add(samples.row(name, [("repeat", json!(repeat))]));
    }

    #[test]
    fn a_count_that_differs_is_the_reason() {
        let mut report = report();
        for (repeat, time, pages) in [(1, 1.0, 7.0), (2, 1.1, 9.0)] {
            add(&mut report, "a", "ms", repeat, &[time]);
            add(&mut report, "pages", "pages", repeat, &[pages]);
            add(&mut report, "faults", "faults", repeat, &[3.0]);
        }
        check(&mut report, "x/repeatable");
        let check = &report.checks[0];
        assert!(check.ok);
        assert!(
            check.detail.ends_with("apart: pages 7 and 9 pages"),
            "{check:?}"
        );
    }

    #[test]
    fn a_benchmark_may_know_a_reason_of_its_own() {
        let mut report = report();
        for (repeat, time) in [(1, 1.0), (2, 1.1)] {
            add(&mut report, "a", "ms", repeat, &[time]);
            add(&mut report, "b", "ms", repeat, &[time]);
        }
        let why = |_: &Report, row: &Row| (row.name == "b").then(|| "so it is".to_owned());
        check_but(&mut report, "x/repeatable", why);
        let ok: Vec<bool> = report.checks.iter().map(|check| check.ok).collect();
        assert_eq!(ok, [false, true]);
        assert!(report.checks[1].detail.ends_with("apart: so it is"));
    }

    #[test]
    fn series_that_spread_as_far_do_not_differ_and_tight_ones_do() {
        for (second, ok) in [([1.0, 1.4, 1.4, 1.4], true), ([1.3, 1.4, 1.4, 1.4], false)] {
            let mut report = report();
            add(&mut report, "a", "ms", 1, &[1.0, 1.0, 1.4, 1.4]);
            add(&mut report, "a", "ms", 2, &second);
            check(&mut report, "x/repeatable");
            assert_eq!(report.checks[0].ok, ok, "{:?}", report.checks[0]);
        }
    }
}
