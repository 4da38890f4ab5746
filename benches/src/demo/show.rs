//! What a person sees while the demonstration runs.

use std::time::Duration;

use super::results::Course;
use crate::report::milliseconds;
use crate::report::table::number;

/// Longest title that is shown, in characters; of a longer one the end is shown.
const TITLE: usize = 32;

/// A request was answered.
pub fn course(request: usize, course: &Course) {
    if request == 1 {
        eprintln!(
            "     {:>3}  {:<TITLE$}  {:>7}  {:>7}  {:>10}  {:>9}  {:>11}  {:>11}",
            "#", "document", "bytes", "words", "latency", "reset", "dirty pages", "traces"
        );
    }
    let title = &course.document.title;
    let skipped = title.chars().count().saturating_sub(TITLE);
    let title: String = title.chars().skip(skipped).collect();
    let bytes = course.document.text.len();
    let (words, traces) = match &course.answer {
        Ok(answer) => (
            answer.report.words.to_string(),
            match answer.traces_found.len() {
                0 => "none".to_owned(),
                found => format!("{found} FOUND"),
            },
        ),
        Err(_) => ("-".to_owned(), "-".to_owned()),
    };
    let (reset, pages) = match &course.record.reset {
        Some(reset) => (nanoseconds(reset.total_ns), reset.pages.to_string()),
        None => ("destroyed".to_owned(), "-".to_owned()),
    };
    let latency = duration(course.latency);
    eprintln!(
        "     {request:>3}  {title:<TITLE$}  {bytes:>7}  {words:>7}  {latency:>10}  {reset:>9}  \
         {pages:>11}  {traces:>11}"
    );
    for mistake in course.mistakes() {
        eprintln!("          WRONG: {mistake}");
    }
}

fn nanoseconds(ns: u64) -> String {
    duration(Duration::from_nanos(ns))
}

fn duration(duration: Duration) -> String {
    format!("{} ms", number(milliseconds(duration)))
}
