//! What the function answers, and what is wrong with an answer.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::documents::Document;
use crate::word_report::WordReport;

/// Traces that every request has to leave: otherwise that none is found proves
/// nothing.
pub const REQUIRED: [&str; 10] = [
    "global",
    "module_attribute",
    "imported_module",
    "environment",
    "tmp_file",
    "overlay_file",
    "thread",
    "child_process",
    "working_directory",
    "tcp_socket",
];

/// The function's answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// From the event.
    pub title: String,
    /// The report on the event's text.
    pub report: WordReport,
    /// Traces of an earlier request that were there at entry.
    pub traces_found: Vec<String>,
    /// Traces that it left.
    pub traces_left: Vec<String>,
    /// Traces that it could not leave, and the reason.
    pub traces_refused: BTreeMap<String, String>,
}

impl Answer {
    /// Where it is not the answer on this document.
    #[must_use]
    pub fn mistakes(&self, document: &Document) -> Vec<String> {
        let mut found = WordReport::of(&document.text).differences(&self.report);
        if self.title != document.title {
            found.push(format!("the title is {:?}", self.title));
        }
        found
    }

    /// Traces that it should have left and did not, each with the reason.
    #[must_use]
    pub fn not_left(&self) -> Vec<String> {
        let left: BTreeSet<&str> = self.traces_left.iter().map(String::as_str).collect();
        REQUIRED
            .iter()
            .filter(|name| !left.contains(*name))
            .map(|name| {
                let reason = self.traces_refused.get(*name);
                format!("{name} ({})", reason.map_or("not tried", String::as_str))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let document = Document {
            title: "a".to_owned(),
            text: "One two.".to_owned(),
        };
        let right = json!({
            "title": "a", "report": WordReport::of(&document.text),
            "traces_found": [], "traces_left": REQUIRED, "traces_refused": {}
        });
        let answer: Answer = serde_json::from_value(right).unwrap();
        assert!(answer.mistakes(&document).is_empty());
        assert!(answer.not_left().is_empty());

        let wrong = Answer {
            title: "b".to_owned(),
            traces_left: REQUIRED[1..].iter().map(|t| (*t).to_owned()).collect(),
            traces_refused: [("global".to_owned(), "EROFS".to_owned())].into(),
            ..answer
        };
        assert_eq!(wrong.mistakes(&document), ["the title is \"b\""]);
        assert_eq!(wrong.not_left(), ["global (EROFS)"]);
    }
}
