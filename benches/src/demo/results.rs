//! From what the requests did to rows and checks.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use snapback_proto::control::ResetReport;

use super::answer::Answer;
use super::documents::Document;
use crate::facts::Record;
use crate::report::{Report, Samples, milliseconds, whole};

/// Name of the rows with one request each; the table for people shows them apart.
pub const EACH: &str = "demo/each";

/// Most mistakes that a check's detail names.
const SHOWN: usize = 3;

/// One request that was answered.
#[derive(Debug, Clone)]
pub struct Course {
    /// What was sent.
    pub document: Document,
    /// From before the connection is made to the whole answer, at the caller.
    pub latency: Duration,
    /// The answer, or what was answered instead.
    pub answer: Result<Answer, String>,
    /// What the agent measured.
    pub record: Record,
}

impl Course {
    /// What is wrong with the answer.
    #[must_use]
    pub fn mistakes(&self) -> Vec<String> {
        match &self.answer {
            Ok(answer) => answer.mistakes(&self.document),
            Err(instead) => vec![instead.clone()],
        }
    }
}

/// Adds rows and checks on `courses`, of `wanted` that should have been run.
pub fn add(report: &mut Report, courses: &[Course], wanted: usize) {
    rows(report, courses);
    each(report, courses);
    answers_right(report, courses, wanted);
    no_traces(report, courses, wanted);
    task_is_read_only(report, courses);
    resets(report, courses);
    generations(report, courses);
}

/// One figure of a reset.
type Figure = fn(&ResetReport) -> u64;

fn rows(report: &mut Report, courses: &[Course]) {
    let records = || courses.iter().map(|course| &course.record);
    let times = |values: &mut dyn Iterator<Item = u64>| {
        let mut samples = Samples::new("ms");
        values.for_each(|ns| samples.push(milliseconds(Duration::from_nanos(ns))));
        samples
    };
    let resets = || records().filter_map(|record| record.reset.as_ref());

    let mut restores = records().filter(|r| r.fresh).map(|r| r.restore_ns);
    report.add(times(&mut restores).row("demo/restore", []));
    let mut requests = Samples::new("ms");
    for course in courses {
        requests.push(milliseconds(course.latency));
    }
    report.add(requests.row(
        "demo/request",
        [("clock", json!("c")), ("concurrency", json!(1))],
    ));
    report.add(times(&mut records().map(|r| r.resume_ns)).row("demo/resume", []));
    report.add(times(&mut records().map(|r| r.function_ns)).row("demo/function", []));
    let parts: [(&str, Figure); 4] = [
        ("demo/reset", |r| r.total_ns),
        ("demo/reset_pause", |r| r.pause_ns),
        ("demo/reset_state", |r| r.state_ns),
        ("demo/reset_pages", |r| r.pages_ns),
    ];
    for (name, part) in parts {
        report.add(times(&mut resets().map(part)).row(name, []));
    }
    let counts: [(&str, Figure); 2] = [
        ("demo/dirty_pages", |r| r.pages),
        ("demo/dirty_pages_by_devices", |r| r.pages_by_devices),
    ];
    for (name, count) in counts {
        let mut samples = Samples::new("pages");
        resets().map(count).for_each(|n| samples.push(whole(n)));
        report.add(samples.row(name, []));
    }
}

/// One row per request, so that the report holds all that was shown.
fn each(report: &mut Report, courses: &[Course]) {
    for (index, course) in courses.iter().enumerate() {
        let mut samples = Samples::new("ms");
        samples.push(milliseconds(course.latency));
        let reset = course.record.reset.as_ref();
        report.add(samples.row(
            EACH,
            [
                ("request", json!(index + 1)),
                ("document", json!(course.document.title)),
                ("bytes", json!(course.document.text.len())),
                ("environment", json!(course.record.environment)),
                ("fresh", json!(course.record.fresh)),
                ("dirty_pages", json!(reset.map(|r| r.pages))),
                ("reset_ns", json!(reset.map(|r| r.total_ns))),
            ],
        ));
    }
}

fn answers_right(report: &mut Report, courses: &[Course], wanted: usize) {
    let mut wrong = Vec::new();
    let mut right = 0;
    for (index, course) in courses.iter().enumerate() {
        let mistakes = course.mistakes();
        right += usize::from(mistakes.is_empty());
        wrong.extend(
            mistakes
                .into_iter()
                .map(|mistake| format!("request {}: {mistake}", index + 1)),
        );
    }
    let ok = right == wanted && wanted > 0;
    let detail = format!("{right} of {wanted} answers are right{}", examples(&wrong));
    report.check("demo/answers_right", ok, detail);
}

fn no_traces(report: &mut Report, courses: &[Course], wanted: usize) {
    let mut troubles = Vec::new();
    let mut clean = 0;
    let mut left = BTreeSet::new();
    for (index, course) in courses.iter().enumerate() {
        let number = index + 1;
        let Ok(answer) = &course.answer else {
            continue;
        };
        left.extend(answer.traces_left.iter());
        clean += usize::from(answer.traces_found.is_empty() && answer.not_left().is_empty());
        for name in &answer.traces_found {
            troubles.push(format!("request {number} found {name}"));
        }
        // What is not left cannot be found: finding nothing would prove nothing.
        for name in answer.not_left() {
            troubles.push(format!("request {number} could not leave {name}"));
        }
    }
    let ok = clean == wanted && wanted > 0;
    let kinds = left.len();
    let detail = format!(
        "{clean} of {wanted} requests found nothing, and left traces in up to {kinds} places{}",
        examples(&troubles)
    );
    report.check("demo/no_traces", ok, detail);
}

/// As on Lambda. The other refusals are told with it: who wonders what a function
/// could not do finds it here.
fn task_is_read_only(report: &mut Report, courses: &[Course]) {
    let answers: Vec<&Answer> = courses
        .iter()
        .filter_map(|c| c.answer.as_ref().ok())
        .collect();
    let refused = |answer: &&Answer| {
        let reason = answer.traces_refused.get("task_file");
        reason.is_some_and(|reason| reason == "EROFS")
    };
    let ok = !answers.is_empty() && answers.iter().all(refused);
    let all: BTreeSet<String> = answers
        .iter()
        .flat_map(|answer| &answer.traces_refused)
        .map(|(name, reason)| format!("{name} {reason}"))
        .collect();
    let list: Vec<String> = all.into_iter().collect();
    let detail = format!("what the function could not do: {}", list.join(", "));
    report.check("demo/task_is_read_only", ok, detail);
}

fn resets(report: &mut Report, courses: &[Course]) {
    let all = courses.len();
    let reset = courses.iter().filter(|c| c.record.reset.is_some()).count();
    let used = courses.iter().filter(|c| !c.record.fresh).count();
    let destroyed: Vec<String> = courses
        .iter()
        .filter_map(|course| course.record.destroyed.clone())
        .collect();
    // Without a microVM that is used again, nothing was shown at all.
    let ok = reset == all && (used > 0 || all == 1);
    let detail = format!(
        "{reset} of {all} requests were followed by a reset, {used} ran in a microVM that had \
         served another one before{}",
        examples(&destroyed)
    );
    report.check("demo/reset_after_each", ok && all > 0, detail);
}

fn generations(report: &mut Report, courses: &[Course]) {
    let all: BTreeSet<u64> = courses.iter().map(|c| c.record.generation).collect();
    let ok = all.len() == courses.len() && !courses.is_empty();
    let detail = format!("{} restore generations", all.len());
    report.check("demo/generations_differ", ok, detail);
}

fn examples(of: &[String]) -> String {
    if of.is_empty() {
        return String::new();
    }
    let more = of.len().saturating_sub(SHOWN);
    let shown: Vec<&str> = of.iter().take(SHOWN).map(String::as_str).collect();
    let shown = shown.join("; ");
    match more {
        0 => format!(" ({shown})"),
        more => format!(" ({shown}; and {more} more)"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::REQUIRED;
    use super::*;
    use crate::report::tests::report;
    use crate::word_report::WordReport;

    fn course(number: u64) -> Course {
        let document = Document {
            title: format!("document {number}"),
            text: "One two three. Four.".to_owned(),
        };
        let answer = Answer {
            title: document.title.clone(),
            report: WordReport::of(&document.text),
            traces_found: Vec::new(),
            traces_left: REQUIRED.map(str::to_owned).to_vec(),
            traces_refused: [("task_file".to_owned(), "EROFS".to_owned())].into(),
        };
        let reset = ResetReport {
            pages: 100 + number,
            pages_by_vcpu: 100,
            pages_by_devices: number,
            pause_ns: 1_000,
            state_ns: 2_000,
            pages_ns: 3_000,
            total_ns: 6_000,
            ..ResetReport::default()
        };
        Course {
            document,
            latency: Duration::from_millis(number),
            answer: Ok(answer),
            record: Record {
                environment: "e".to_owned(),
                fresh: number == 1,
                generation: number,
                blank_pool: Some("hit".to_owned()),
                restore_ns: 5_000_000,
                enter_ns: 300_000,
                userfaults: 0,
                resume_ns: 1_000_000,
                function_ns: 2_000_000,
                reset: Some(reset),
                destroyed: None,
            },
        }
    }

    fn outcome(courses: &[Course], wanted: usize) -> Report {
        let mut report = report();
        report.rows.clear();
        add(&mut report, courses, wanted);
        report
    }

    fn failed(report: &Report) -> Vec<&str> {
        let bad = report.checks.iter().filter(|check| !check.ok);
        bad.map(|check| check.name.as_str()).collect()
    }

    #[test]
    fn good_requests_make_rows_and_pass() {
        let report = outcome(&[course(1), course(2), course(3)], 3);
        assert_eq!(failed(&report), [""; 0]);
        let row = |name: &str| report.rows.iter().find(|row| row.name == name).unwrap();
        assert_eq!((row("demo/restore").n, row("demo/restore").p50), (1, 5.0));
        assert_eq!((row("demo/request").n, row("demo/request").p50), (3, 2.0));
        assert_eq!(row("demo/dirty_pages").p99, 103.0);
        assert_eq!(row("demo/reset").p50, 0.006);
        assert_eq!(report.rows.iter().filter(|r| r.name == EACH).count(), 3);
    }

    #[test]
    fn every_kind_of_failure_fails_its_check() {
        type Change = fn(&mut Course);
        let cases: [(Change, &[&str]); 7] = [
            (
                |c| c.answer = Err("timed out".to_owned()),
                &["demo/answers_right", "demo/no_traces"],
            ),
            (
                |c| c.answer.as_mut().unwrap().report.words += 1,
                &["demo/answers_right"],
            ),
            (
                |c| {
                    c.answer
                        .as_mut()
                        .unwrap()
                        .traces_found
                        .push("thread".to_owned())
                },
                &["demo/no_traces"],
            ),
            (
                |c| drop(c.answer.as_mut().unwrap().traces_left.pop()),
                &["demo/no_traces"],
            ),
            (
                |c| c.answer.as_mut().unwrap().traces_refused.clear(),
                &["demo/task_is_read_only"],
            ),
            (|c| c.record.reset = None, &["demo/reset_after_each"]),
            (|c| c.record.generation = 1, &["demo/generations_differ"]),
        ];
        for (number, (change, checks)) in cases.into_iter().enumerate() {
            let mut courses = [course(1), course(2)];
            change(&mut courses[1]);
            assert_eq!(failed(&outcome(&courses, 2)), checks, "case {number}");
        }
    }

    #[test]
    fn requests_that_did_not_run_are_failures() {
        let missing = outcome(&[course(1), course(2)], 3);
        assert_eq!(failed(&missing), ["demo/answers_right", "demo/no_traces"]);
        let nothing = outcome(&[], 3);
        assert_eq!(nothing.checks.len(), failed(&nothing).len());
    }

    #[test]
    fn microvms_that_are_never_used_again_show_nothing() {
        let mut courses = [course(1), course(2)];
        courses[1].record.fresh = true;
        assert_eq!(failed(&outcome(&courses, 2)), ["demo/reset_after_each"]);
    }
}
