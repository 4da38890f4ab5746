//! From rows to checks.

use serde_json::{Value, json};

use super::pages::{FIFTY, THOUSAND};
use crate::report::table::number;
use crate::report::{Report, Row};

/// The most that a reset may take with fifty and with a thousand pages written, in
/// milliseconds.
const FIFTY_MS: f64 = 0.12;
const THOUSAND_MS: f64 = 0.85;
/// The least share of its throughput that a function keeps.
const THROUGHPUT: f64 = 0.8;
/// The most that each further page may take, in milliseconds.
const FURTHER_PAGE: f64 = 0.000_75;

fn find<'a>(report: &'a Report, name: &str, wanted: &[(&str, Value)]) -> Option<&'a Row> {
    let fits = |row: &&Row| {
        row.name == name
            && wanted
                .iter()
                .all(|(name, value)| row.params.get(*name) == Some(value))
    };
    report.rows.iter().find(fits)
}

/// A row of requests that write the same pages, or others, each time.
fn of<'a>(report: &'a Report, name: &str, pages: u64, policy: &str) -> Option<&'a Row> {
    let wanted = [("pages", json!(pages)), ("policy", json!(policy))];
    find(report, name, &wanted)
}

/// Holds the rows against the targets.
pub fn check(report: &mut Report) {
    let mut checks = Vec::new();
    for policy in ["hot", "cold"] {
        let name = format!("reset/target_1000_{policy}");
        let wanted = [("pages", json!(THOUSAND)), ("policy", json!(policy))];
        checks.push((name, within(report, &wanted, THOUSAND_MS)));
        checks.push((format!("reset/target_page_{policy}"), slope(report, policy)));
    }
    let wanted = [("wrote", json!(FIFTY))];
    let fifty = within(report, &wanted, FIFTY_MS);
    checks.push(("reset/target_50".to_owned(), fifty));
    for runtime in ["python", "provided"] {
        let name = format!("reset/target_throughput_{runtime}");
        checks.push((name, throughput(report, runtime)));
        let name = format!("reset/first_requests_{runtime}");
        checks.push((name, first_requests(report, runtime)));
    }
    for (name, verdict) in checks {
        let (ok, detail) = verdict.unwrap_or((false, "not measured".to_owned()));
        report.check(&name, ok, detail);
    }
}

/// The rows of these lives, held against the most that their resets may take.
fn within(report: &Report, wanted: &[(&str, Value)], most: f64) -> Option<(bool, String)> {
    let row = find(report, "reset/pages", wanted)?;
    let wrote = find(report, "reset/dirty_pages", wanted)?.p50;
    let detail = format!(
        "{} ms for {} pages, at most {most} ms",
        number(row.p50),
        number(wrote)
    );
    Some((row.p50 <= most, detail))
}

/// Requests per second with a reset after each, held against those without.
fn throughput(report: &Report, runtime: &str) -> Option<(bool, String)> {
    let rate = |reset: bool| {
        let wanted = [("runtime", json!(runtime)), ("reset", json!(reset))];
        Some(find(report, "reset/throughput", &wanted)?.p50)
    };
    let (with, without) = (rate(true)?, rate(false)?);
    Some(share(with, without, |with, without| {
        format!("{with} req/s with resets, {without} without")
    }))
}

/// Whether enough is left of a whole, with the words for both.
fn share(part: f64, whole: f64, words: impl FnOnce(String, String) -> String) -> (bool, String) {
    let share = part / whole.max(f64::MIN_POSITIVE);
    let words = words(number(part), number(whole));
    let (percent, least) = (share * 100.0, THROUGHPUT * 100.0);
    let detail = format!("{words}: {percent:.0} %, at least {least:.0} %");
    (share >= THROUGHPUT, detail)
}

/// The share of its time that a machine has for its guest when every request is the first
/// one after the snapshot.
fn first_requests(report: &Report, runtime: &str) -> Option<(bool, String)> {
    let of = [("runtime", json!(runtime))];
    let guest = find(report, "reset/first_request", &of)?.p50;
    let wanted = [("runtime", json!(runtime)), ("reset", json!(true))];
    let whole = 1e3 / find(report, "reset/throughput", &wanted)?.p50;
    Some(share(guest, whole, |guest, whole| {
        format!("{guest} of {whole} ms are the guest's")
    }))
}

/// What a page costs beyond the fiftieth, up to a thousand.
fn slope(report: &Report, policy: &str) -> Option<(bool, String)> {
    let at = |pages| {
        let time = of(report, "reset/pages", pages, policy)?.p50;
        Some((time, of(report, "reset/dirty_pages", pages, policy)?.p50))
    };
    let ((few, from), (many, to)) = (at(50)?, at(u64::from(THOUSAND))?);
    let each = (many - few) / (to - from).max(1.0);
    let detail = format!(
        "{} µs a page, at most {} µs",
        number(each * 1e3),
        number(FURTHER_PAGE * 1e3)
    );
    Some((each <= FURTHER_PAGE, detail))
}
