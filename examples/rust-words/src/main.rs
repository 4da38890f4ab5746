//! A function in Rust: counts the words of a text.

use std::collections::BTreeMap;

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde::{Deserialize, Serialize};

/// What is asked.
#[derive(Debug, Deserialize)]
struct Event {
    text: String,
}

/// What is answered.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Report {
    words: usize,
    longest: Option<String>,
    counts: BTreeMap<String, usize>,
    /// Which runtime this is: the function's own.
    function: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(service_fn(handle)).await
}

async fn handle(event: LambdaEvent<Event>) -> Result<Report, Error> {
    let function = event.context.env_config.function_name.clone();
    if event.payload.text.is_empty() {
        return Err("the text is empty".into());
    }
    Ok(report(&event.payload.text, function))
}

fn report(text: &str, function: String) -> Report {
    let mut counts = BTreeMap::new();
    let mut words = 0;
    for word in text.split(|letter: char| !letter.is_alphabetic()) {
        if !word.is_empty() {
            words += 1;
            *counts.entry(word.to_lowercase()).or_insert(0) += 1;
        }
    }
    // Of several, the first in the alphabet.
    let longest = counts
        .keys()
        .rev()
        .max_by_key(|word| word.chars().count())
        .cloned();
    Report {
        words,
        longest,
        counts,
        function,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_whatever_their_case() {
        let report = report("One two ONE, žluťoučký kůň.", "f".to_owned());
        assert_eq!(report.words, 5);
        assert_eq!(report.counts["one"], 2);
        assert_eq!(report.longest.as_deref(), Some("žluťoučký"));
    }
}
