//! What `examples/word-report` must answer, computed a second time.
//!
//! The rules are the ones that its `report.py` and `syllables.py` document. Nothing
//! of that code is used here: one pass over the characters stands against its regular
//! expressions, so that a mistake would have to be made twice to stay unseen.

mod syllables;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::report::whole;
use syllables::syllables;

/// How many words are listed.
const TOP_WORDS: usize = 20;
/// How many sentence lengths are listed.
const LONGEST_SENTENCES: usize = 5;

/// A report on a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WordReport {
    /// Unicode code points, with line ends as one.
    pub characters: u64,
    /// All words.
    pub words: u64,
    /// Different words.
    pub distinct_words: u64,
    /// Sentences with at least one word.
    pub sentences: u64,
    /// Syllables of all words.
    pub syllables: u64,
    /// Different words per word.
    pub type_token_ratio: Option<f64>,
    /// Words per sentence.
    pub words_per_sentence: Option<f64>,
    /// Syllables per word.
    pub syllables_per_word: Option<f64>,
    /// Flesch's reading ease.
    pub flesch_reading_ease: Option<f64>,
    /// Flesch and Kincaid's school grade.
    pub flesch_kincaid_grade: Option<f64>,
    /// Lengths of the longest sentences, in words, longest first.
    pub longest_sentences: Vec<u64>,
    /// The most frequent words; of equally frequent ones the alphabetically first.
    pub top_words: Vec<WordCount>,
}

/// A word and how often it comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WordCount {
    /// In lower case.
    pub word: String,
    /// How often.
    pub count: u64,
}

impl WordReport {
    /// The report on `text`, with ratios that are not rounded.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let characters = normalise(text);
        let sentences = sentences(&characters);
        let mut counts = BTreeMap::<&str, u64>::new();
        for word in sentences.iter().flatten() {
            *counts.entry(word).or_default() += 1;
        }
        let words = counts.values().sum();
        let syllables = counts.iter().map(|(word, n)| syllables(word) * n).sum();
        let mut longest: Vec<u64> = sentences.iter().map(|words| length(words)).collect();
        longest.sort_unstable_by_key(|length| Reverse(*length));
        longest.truncate(LONGEST_SENTENCES);
        // The sort is stable and a map's keys are in order: ties stay alphabetical.
        let mut ranked: Vec<(&str, u64)> = counts.iter().map(|(word, n)| (*word, *n)).collect();
        ranked.sort_by_key(|(_, count)| Reverse(*count));
        let distinct_words = length(&ranked);
        ranked.truncate(TOP_WORDS);

        let ratio = |of: u64, to: u64| (words > 0).then(|| whole(of) / whole(to));
        let per_sentence = ratio(words, length(&sentences));
        let per_word = ratio(syllables, words);
        let both = per_sentence.zip(per_word);
        Self {
            characters: length(&characters),
            words,
            distinct_words,
            sentences: length(&sentences),
            syllables,
            type_token_ratio: ratio(distinct_words, words),
            words_per_sentence: per_sentence,
            syllables_per_word: per_word,
            flesch_reading_ease: both.map(|(s, w)| 206.835 - 1.015 * s - 84.6 * w),
            flesch_kincaid_grade: both.map(|(s, w)| 0.39 * s + 11.8 * w - 15.59),
            longest_sentences: longest,
            top_words: ranked
                .into_iter()
                .map(|(word, count)| WordCount {
                    word: word.to_owned(),
                    count,
                })
                .collect(),
        }
    }

    /// Where an answer is not this report, with both values. Ratios may differ by the
    /// rounding that the function documents: four decimals for the type-token ratio,
    /// two for the others.
    #[must_use]
    pub fn differences(&self, answer: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut exact = |what: &str, same: bool, expected: String, answered: String| {
            if !same {
                found.push(format!("{what} is {answered}, not {expected}"));
            }
        };
        let counts = [
            ("characters", self.characters, answer.characters),
            ("words", self.words, answer.words),
            ("distinct_words", self.distinct_words, answer.distinct_words),
            ("sentences", self.sentences, answer.sentences),
            ("syllables", self.syllables, answer.syllables),
        ];
        for (what, expected, answered) in counts {
            let same = expected == answered;
            exact(what, same, expected.to_string(), answered.to_string());
        }
        let lengths = (&self.longest_sentences, &answer.longest_sentences);
        exact(
            "longest_sentences",
            lengths.0 == lengths.1,
            format!("{:?}", lengths.0),
            format!("{:?}", lengths.1),
        );
        let tops = (&self.top_words, &answer.top_words);
        exact(
            "top_words",
            tops.0 == tops.1,
            format!("{:?}", tops.0),
            format!("{:?}", tops.1),
        );
        for (mine, answered) in self.ratios().into_iter().zip(answer.ratios()) {
            let (what, decimals, expected) = mine;
            let answered = answered.2;
            let same = match (expected, answered) {
                (Some(one), Some(other)) => {
                    (one - other).abs() <= 0.5 * 0.1_f64.powi(decimals) + 1e-9
                }
                (one, other) => one.is_none() && other.is_none(),
            };
            exact(what, same, format!("{expected:?}"), format!("{answered:?}"));
        }
        found
    }

    /// Name, decimals in an answer, and value.
    fn ratios(&self) -> [(&'static str, i32, Option<f64>); 5] {
        [
            ("type_token_ratio", 4, self.type_token_ratio),
            ("words_per_sentence", 2, self.words_per_sentence),
            ("syllables_per_word", 2, self.syllables_per_word),
            ("flesch_reading_ease", 2, self.flesch_reading_ease),
            ("flesch_kincaid_grade", 2, self.flesch_kincaid_grade),
        ]
    }
}

fn length<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}

/// Line ends become `\n`, the typographic apostrophe becomes the plain one.
fn normalise(text: &str) -> Vec<char> {
    let mut characters = Vec::with_capacity(text.len());
    let mut after_return = false;
    for character in text.chars() {
        match character {
            '\n' if after_return => {}
            '\r' => characters.push('\n'),
            '\u{2019}' => characters.push('\''),
            other => characters.push(other),
        }
        after_return = character == '\r';
    }
    characters
}

/// The words of each sentence that has any.
fn sentences(text: &[char]) -> Vec<Vec<String>> {
    let mut sentences = Vec::new();
    let mut words = Vec::new();
    let mut at = 0;
    let run = |from: usize, of: &dyn Fn(char) -> bool| {
        let rest = text.get(from..).unwrap_or_default();
        from + rest.iter().take_while(|c| of(**c)).count()
    };
    while let Some(&character) = text.get(at) {
        let ends = match character {
            'a'..='z' | 'A'..='Z' => {
                let (word, end) = word(text, at);
                words.push(word);
                at = end;
                false
            }
            '.' | '!' | '?' => {
                at = run(at, &|c| matches!(c, '.' | '!' | '?'));
                at = run(at, &|c| matches!(c, '"' | '\'' | ')' | ']'));
                text.get(at).is_none_or(|c| is_white(*c))
            }
            '\n' => {
                at = run(at + 1, &|c| matches!(c, ' ' | '\t'));
                text.get(at) == Some(&'\n')
            }
            _ => {
                at += 1;
                false
            }
        };
        if ends && !words.is_empty() {
            sentences.push(std::mem::take(&mut words));
        }
    }
    if !words.is_empty() {
        sentences.push(words);
    }
    sentences
}

/// The word that begins at a letter, and where it ends.
fn word(text: &[char], start: usize) -> (String, usize) {
    let letter = |at: usize| text.get(at).filter(|c| c.is_ascii_alphabetic());
    let mut word = String::new();
    let mut at = start;
    loop {
        if let Some(letter) = letter(at) {
            word.push(letter.to_ascii_lowercase());
        } else if text.get(at) == Some(&'\'') && letter(at + 1).is_some() {
            word.push('\'');
        } else {
            return (word, at);
        }
        at += 1;
    }
}

fn is_white(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r' | '\u{c}' | '\u{b}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_of(text: &str) -> Vec<Vec<String>> {
        sentences(&normalise(text))
    }

    #[test]
    fn sentences_end_where_the_rules_say() {
        let lengths = |text: &str| -> Vec<usize> { words_of(text).iter().map(Vec::len).collect() };
        assert_eq!(lengths("One two. Three!"), [2, 1]);
        assert_eq!(lengths("Version 3.14 is out"), [3]);
        assert_eq!(lengths("He said \"go.\") Then?! done"), [3, 1, 1]);
        assert_eq!(lengths("A heading\n \t\nand text\nof two lines"), [2, 5]);
        assert_eq!(lengths("...\n\n?! 12 — ½"), [0; 0]);
        assert_eq!(lengths("a.b"), [2]);
    }

    #[test]
    fn words_keep_apostrophes_between_letters_only() {
        let text = "'Tis the dogs' DON\u{2019}T rock''n'roll x2y naïve \u{212a}";
        assert_eq!(
            words_of(text),
            [[
                "tis", "the", "dogs", "don't", "rock", "n'roll", "x", "y", "na", "ve"
            ]]
        );
    }

    #[test]
    fn a_known_text_has_known_figures() {
        // 2 sentences, 6 + 4 words; syllables by hand: 6 + 6.
        let report = WordReport::of("The cat sat on the mat.\r\nA table was handled.");
        assert_eq!(
            (report.words, report.sentences, report.syllables),
            (10, 2, 12)
        );
        assert_eq!(report.longest_sentences, [6, 4]);
        assert_eq!(report.top_words[0].word, "the");
        assert_eq!(report.top_words[1].word, "a");
        let ease = report.flesch_reading_ease.unwrap();
        assert!((ease - (206.835 - 1.015 * 5.0 - 84.6 * 1.2)).abs() < 1e-9);
        let grade = report.flesch_kincaid_grade.unwrap();
        assert!((grade - (0.39 * 5.0 + 11.8 * 1.2 - 15.59)).abs() < 1e-9);
    }

    #[test]
    fn nothing_has_no_ratios() {
        let report = WordReport::of(" \n");
        assert_eq!(report.words, 0);
        assert_eq!(report.flesch_kincaid_grade, None);
        assert!(report.differences(&report).is_empty());
    }

    #[test]
    fn every_wrong_field_is_named() {
        let right = WordReport::of("One two three. Four five.");
        let mut wrong =
            WordReport::of("Some entirely different text with repeated repeated words.");
        assert_eq!(right.differences(&wrong).len(), 12);
        wrong = right.clone();
        wrong.flesch_reading_ease = wrong.flesch_reading_ease.map(|ease| ease + 0.02);
        wrong.type_token_ratio = None;
        let found = right.differences(&wrong);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
