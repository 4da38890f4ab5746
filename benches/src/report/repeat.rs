//! Whether a figure comes out twice: two series of the same combination, told apart
//! by the parameter `repeat` (1 and 2).

use serde_json::json;

use super::table::number;
use super::{Report, Row};

/// How much the medians of two series of the same combination may differ.
const REPEATABLE: f64 = 0.02;

/// Adds a check for each duration that was measured twice.
pub fn check(report: &mut Report, name: &str) {
    let first = |row: &&Row| row.params.get("repeat") == Some(&json!(1)) && row.unit == "ms";
    let pairs = report.rows.iter().filter(first).filter_map(|one| {
        let again = |row: &&Row| {
            let mut params = row.params.clone();
            params.insert("repeat".to_owned(), json!(1));
            row.name == one.name && row.params != one.params && params == one.params
        };
        Some((one, report.rows.iter().find(again)?))
    });
    let verdicts: Vec<_> = pairs
        .map(|(one, again)| {
            let difference = (one.p50 - again.p50).abs() / one.p50.max(f64::MIN_POSITIVE);
            let runtime = one.params.get("runtime").and_then(|value| value.as_str());
            let detail = format!(
                "{} {}: {} and {} ms, {:.1} % apart",
                one.name,
                runtime.unwrap_or_default(),
                number(one.p50),
                number(again.p50),
                difference * 100.0
            );
            (difference < REPEATABLE, detail)
        })
        .collect();
    for (ok, detail) in verdicts {
        report.check(name, ok, detail);
    }
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
}
