//! Reads what Rust's test harness prints.

use std::ops::AddAssign;

/// The status of a test program that ran to its end and some of whose tests failed.
const TESTS_FAILED: u8 = 101;

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, and everything else that went wrong.
    pub failed: u64,
}

impl Tally {
    /// One thing that went wrong.
    pub const FAILURE: Self = Self {
        passed: 0,
        failed: 1,
    };

    /// How many tests ran.
    pub fn ran(self) -> u64 {
        self.passed + self.failed
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// The numbers in a `test result:` line; nothing if the line is another one.
pub fn parse_result(line: &str) -> Option<Tally> {
    let (_, counts) = line
        .trim()
        .strip_prefix("test result: ")?
        .split_once(". ")?;
    let count = |what: &str| {
        counts
            .split(';')
            .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    Some(Tally {
        passed: count("passed")?,
        failed: count("failed")?,
    })
}

/// What one test program amounts to: what it reported, and a failure more if its end
/// contradicts the report.
#[derive(Clone, Debug, Default)]
pub struct ProgramTally {
    reported: Option<Tally>,
    /// The names in the list that is open, or was the last one: of the tests that failed.
    listed: Vec<String>,
    /// Whether the list of the tests that failed is open.
    lists: bool,
}

impl ProgramTally {
    /// Takes notice of a line that the program printed.
    pub fn line(&mut self, line: &str) {
        if line.trim_end() == "failures:" {
            // It comes twice: before what the tests printed, and before their names.
            self.listed.clear();
            self.lists = true;
        } else if self.lists && line.starts_with("    ") {
            self.listed.push(line.trim().to_owned());
        }
        if let Some(tally) = parse_result(line) {
            let mut sum = self.reported.unwrap_or_default();
            sum += tally;
            self.reported = Some(sum);
            self.lists = false;
        }
    }

    /// The names of the tests that failed, if they are all that is wrong with a program that
    /// ended with `code`.
    pub fn failed_tests(&self, code: Option<u8>) -> Option<&[String]> {
        let count = self.listed.len() as u64;
        let all = self.clone().end(code).failed == count;
        (code == Some(TESTS_FAILED) && count > 0 && all).then_some(&self.listed)
    }

    /// The sum, now that the program ended with `code` (none if it is not known to have ended).
    pub fn end(self, code: Option<u8>) -> Tally {
        let mut tally = self.reported.unwrap_or_default();
        let contradicts = match code {
            Some(0) => self.reported.is_none(),
            _ => tally.failed == 0,
        };
        if contradicts {
            tally += Tally::FAILURE;
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s";
    const BAD: &str =
        "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out";

    #[test]
    fn result_lines_are_read() {
        let tally = |passed, failed| Some(Tally { passed, failed });
        assert_eq!(parse_result(GOOD), tally(12, 0));
        assert_eq!(parse_result(BAD), tally(2, 3));
        assert_eq!(parse_result("test result: ok."), None);
        assert_eq!(parse_result("test a::b ... ok"), None);
    }

    fn program(lines: &[&str], code: Option<u8>) -> Tally {
        let mut program = ProgramTally::default();
        for line in lines {
            program.line(line);
        }
        program.end(code)
    }

    #[test]
    fn a_program_that_ends_as_it_reported_counts_as_reported() {
        assert_eq!(program(&[GOOD], Some(0)).failed, 0);
        assert_eq!(program(&[BAD], Some(101)).failed, 3);
    }

    #[test]
    fn the_tests_that_failed_are_known_if_they_are_all_that_is_wrong() {
        let mut program = ProgramTally::default();
        for line in [
            "test b::one ... FAILED",
            "failures:",
            "",
            "---- b::one stdout ----",
            "    an indented line of its output",
            "",
            "failures:",
            "    b::one",
            "    b::two",
            "    b::three",
            "",
            BAD,
            "    whatever is printed then",
        ] {
            program.line(line);
        }
        let names = ["b::one", "b::two", "b::three"].map(str::to_owned);
        assert_eq!(program.failed_tests(Some(101)), Some(&names[..]));
        for crashed in [Some(139), Some(0), None] {
            assert_eq!(program.failed_tests(crashed), None);
        }
        program.line(BAD);
        assert_eq!(
            program.failed_tests(Some(101)),
            None,
            "more failed than have names"
        );
        assert_eq!(ProgramTally::default().failed_tests(Some(101)), None);
    }

    #[test]
    fn a_crash_is_one_failure_more() {
        assert_eq!(program(&[], Some(139)).failed, 1);
        assert_eq!(
            program(&[GOOD], Some(134)),
            Tally {
                passed: 12,
                failed: 1
            }
        );
        assert_eq!(program(&[], None).failed, 1);
        assert_eq!(program(&[], Some(0)).failed, 1);
        assert_eq!(program(&[GOOD], None).failed, 1);
    }
}
