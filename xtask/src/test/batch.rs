//! Runs many test programs as one job: a box is started once for all of them.

use anyhow::Result;

use super::libtest::{ProgramTally, Tally};
use super::programs::TestProgram;
use crate::execution::{self, Outcome, Stream};
use crate::place::Place;
use crate::shell;

/// The start of a line by which the batch's script says where it is. Followed by `begin INDEX`
/// or `end INDEX STATUS`.
const MARK: &str = "@@snapback-batch ";

/// The programs that run on one host, for each host. A box emulates one processor, so two
/// boxes share the work: one has the promises of the whole agent, which take about as long as
/// all others together.
pub fn split(programs: &[TestProgram], place: Place) -> Vec<Vec<TestProgram>> {
    let of_agent = |program: &&TestProgram| program.name == "tests/test/agent";
    let batches = match place {
        Place::Native => vec![programs.to_vec()],
        Place::Box => {
            let (whole, parts) = programs.iter().partition::<Vec<_>, _>(of_agent);
            [whole, parts]
                .map(|batch| batch.into_iter().cloned().collect())
                .to_vec()
        }
    };
    batches
        .into_iter()
        .filter(|batch: &Vec<TestProgram>| !batch.is_empty())
        .collect()
}

/// The script that runs `programs` one after the other, each test alone. `selection` gives the
/// arguments that choose among a program's tests.
pub fn script(programs: &[TestProgram], selection: impl Fn(&TestProgram) -> Vec<String>) -> String {
    let mut script = String::new();
    for (index, program) in programs.iter().enumerate() {
        let selection: Vec<_> = selection(program)
            .iter()
            .map(|word| shell::quote(word))
            .collect();
        let selection = selection.join(" ");
        let directory = shell::quote(&program.directory.to_string_lossy());
        let executable = shell::quote(&program.executable.to_string_lossy());
        script.push_str(&format!(
            "echo '{MARK}begin {index}'\n\
             (cd {directory} && CARGO_MANIFEST_DIR={directory} exec {executable} --test-threads=1 {selection})\n\
             status=$?; echo; echo \"{MARK}end {index} $status\"\n",
        ));
    }
    script
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Ended {
    /// Sum of all its programs.
    pub tally: Tally,
    /// What did not end well, for people.
    pub unwell: Vec<String>,
    /// The tests that failed, if they are all that did not end well.
    pub failed: Vec<FailedTests>,
}

/// Tests of one program that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedTests {
    pub program: TestProgram,
    pub names: Vec<String>,
}

/// Follows a batch through its output.
pub struct Follower<'a> {
    programs: &'a [TestProgram],
    /// What is known of the programs that ended.
    ended: Ended,
    /// How many ended.
    count: usize,
    /// The one that runs.
    current: ProgramTally,
    /// The begin of a line of stdout that is not complete.
    partial: Vec<u8>,
}

impl<'a> Follower<'a> {
    /// A follower of a batch that has not begun.
    pub fn new(programs: &'a [TestProgram]) -> Self {
        Self {
            programs,
            ended: Ended::default(),
            count: 0,
            current: ProgramTally::default(),
            partial: Vec::new(),
        }
    }

    /// Takes notice of output and passes it on, without the batch's own marks.
    pub fn output(&mut self, stream: Stream, bytes: &[u8]) -> Result<()> {
        if stream == Stream::Err {
            return execution::pass_on(stream, bytes);
        }
        self.partial.extend_from_slice(bytes);
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            let shown = self.line(&String::from_utf8_lossy(&line));
            if let Some(shown) = shown {
                execution::pass_on(Stream::Out, shown.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Takes notice of a line; the result is what to show in its stead.
    fn line(&mut self, line: &str) -> Option<String> {
        let Some(mark) = line.trim_end().strip_prefix(MARK) else {
            self.current.line(line);
            return Some(line.to_owned());
        };
        let mut words = mark.split(' ');
        let verb = words.next().unwrap_or_default();
        let program = words
            .next()
            .and_then(|index| index.parse::<usize>().ok())
            .and_then(|index| self.programs.get(index));
        let (Some(program), code) = (program, words.next().and_then(|code| code.parse().ok()))
        else {
            return None;
        };
        if verb == "begin" {
            self.current = ProgramTally::default();
            return Some(format!("-- {}\n", program.name));
        }
        let current = std::mem::take(&mut self.current);
        if let Some(names) = current.failed_tests(code) {
            self.ended.failed.push(FailedTests {
                program: program.clone(),
                names: names.to_vec(),
            });
        }
        let tally = current.end(code);
        if tally.failed > 0 {
            self.ended.unwell.push(program.name.clone());
        }
        self.ended.tally += tally;
        self.count += 1;
        None
    }

    /// What became of the batch, now that the job is over.
    pub fn finish(mut self, outcome: &Outcome) -> Ended {
        if let Some(trouble) = outcome.trouble() {
            self.ended.unwell.push(trouble);
        }
        for (index, program) in self.programs.iter().enumerate().skip(self.count) {
            // The first of them was running; the others never began.
            let tally = if index == self.count {
                std::mem::take(&mut self.current).end(None)
            } else {
                Tally::FAILURE
            };
            self.ended.tally += tally;
            let unwell = format!("{} (did not end)", program.name);
            self.ended.unwell.push(unwell);
        }
        let named: usize = self.ended.failed.iter().map(|of| of.names.len()).sum();
        if self.ended.tally.failed != named as u64 || outcome.trouble().is_some() {
            self.ended.failed.clear();
        }
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn programs(names: &[&str]) -> Vec<TestProgram> {
        names
            .iter()
            .map(|name| TestProgram {
                name: (*name).to_owned(),
                executable: format!("/bin/{name}").into(),
                directory: "/".into(),
                needs_kvm: true,
            })
            .collect()
    }

    fn follow(programs: &[TestProgram], output: &str, outcome: &Outcome) -> Ended {
        let mut follower = Follower::new(programs);
        for line in output.split_inclusive('\n') {
            follower.line(line);
        }
        follower.finish(outcome)
    }

    const RESULT: &str = "test result: ok. 2 passed; 0 failed; 0 ignored\n";

    #[test]
    fn the_script_reports_each_status() {
        let programs = programs(&["true", "false"]);
        let output = Command::new("sh")
            .args(["-c", &script(&programs, |_| vec!["a b".to_owned()])])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("@@snapback-batch end 0 0\n"), "{text}");
        assert!(text.contains("@@snapback-batch end 1 1\n"), "{text}");
    }

    #[test]
    fn sums_over_programs() {
        let output =
            format!("{MARK}begin 0\n{RESULT}{MARK}end 0 0\n{MARK}begin 1\n{RESULT}{MARK}end 1 0\n");
        let Ended { tally, unwell, .. } =
            follow(&programs(&["a", "b"]), &output, &Outcome::Exited(0));
        assert_eq!(
            tally,
            Tally {
                passed: 4,
                failed: 0
            }
        );
        assert!(unwell.is_empty());
    }

    #[test]
    fn a_crash_does_not_hide_behind_the_next_program() {
        let output =
            format!("{MARK}begin 0\n{MARK}end 0 139\n{MARK}begin 1\n{RESULT}{MARK}end 1 0\n");
        let Ended { tally, unwell, .. } =
            follow(&programs(&["a", "b"]), &output, &Outcome::Exited(0));
        assert_eq!(
            tally,
            Tally {
                passed: 2,
                failed: 1
            }
        );
        assert_eq!(unwell, ["a"]);
    }

    #[test]
    fn tests_that_failed_are_named_unless_more_is_wrong() {
        let failed = "failures:\n    b::one\n\n\
                      test result: FAILED. 1 passed; 1 failed; 0 ignored\n";
        let programs = programs(&["a", "b"]);
        let good = format!("{MARK}begin 0\n{failed}{MARK}end 0 101\n");
        let then = |end: &str| format!("{good}{MARK}begin 1\n{end}");
        let well = then(&format!("{RESULT}{MARK}end 1 0\n"));
        let named = follow(&programs, &well, &Outcome::Exited(0)).failed;
        let expected = FailedTests {
            program: programs[0].clone(),
            names: vec!["b::one".to_owned()],
        };
        assert_eq!(named, [expected]);
        let crashed = then(&format!("{MARK}end 1 139\n"));
        assert_eq!(follow(&programs, &crashed, &Outcome::Exited(0)).failed, []);
        let died = Outcome::Died("gone".into());
        assert_eq!(follow(&programs, &well, &died).failed, []);
    }

    #[test]
    fn two_boxes_share_the_programs_and_one_host_has_them_all() {
        let all = programs(&["vmm/test/a", "tests/test/agent", "tests/test/b"]);
        let names = |place, all: &[TestProgram]| -> Vec<Vec<String>> {
            let batches = split(all, place).into_iter();
            let names = batches.map(|batch| batch.into_iter().map(|p| p.name).collect());
            names.collect()
        };
        let expected = [vec!["tests/test/agent"], vec!["vmm/test/a", "tests/test/b"]];
        assert_eq!(names(Place::Box, &all), expected);
        assert_eq!(
            names(Place::Native, &all),
            [vec!["vmm/test/a", "tests/test/agent", "tests/test/b"]]
        );
        assert_eq!(names(Place::Box, &all[..1]), [vec!["vmm/test/a"]]);
    }

    #[test]
    fn programs_that_did_not_end_are_failures() {
        let output = format!("{MARK}begin 0\n{RESULT}");
        let outcome = Outcome::Died("gone".into());
        let Ended { tally, unwell, .. } = follow(&programs(&["a", "b"]), &output, &outcome);
        assert_eq!(
            tally,
            Tally {
                passed: 2,
                failed: 2
            }
        );
        assert_eq!(unwell.len(), 3);
    }
}
