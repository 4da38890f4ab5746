//! A second look at the few tests that failed where the processor is emulated.
//!
//! There a guest's second takes as long as the shared machine below has time for: a bound that
//! is generous on any real host is missed now and then. Such a test runs once more, alone in a
//! fresh box. If it fails again, it has failed; if it passes, the run says so by name, since one
//! that is named twice is a defect to look for. Decision 0034 has the reasons.

use super::batch::{Ended, FailedTests};
use super::programs::TestProgram;
use crate::place::Place;

/// More than these, one in a hundred tests, are no accident.
const LIMIT: usize = 8;

/// The tests to run again after the batches `ended`: none if all passed, or if something is
/// wrong that a second look could not excuse.
pub fn choose(place: Place, ended: &[Ended]) -> Vec<FailedTests> {
    let excusable = ended
        .iter()
        .all(|batch| batch.unwell.is_empty() || !batch.failed.is_empty());
    let failed: Vec<_> = ended
        .iter()
        .flat_map(|batch| batch.failed.clone())
        .collect();
    let count: usize = failed.iter().map(|of| of.names.len()).sum();
    if place == Place::Box && excusable && count <= LIMIT {
        failed
    } else {
        Vec::new()
    }
}

/// The arguments that select those of `program`'s tests that are in `failed`.
pub fn selection(failed: &[FailedTests], program: &TestProgram) -> Vec<String> {
    let names = failed.iter().filter(|of| of.program == *program);
    let names = names.flat_map(|of| of.names.iter().cloned());
    std::iter::once("--exact".to_owned()).chain(names).collect()
}

/// What the batches amount to, now that the tests that `failed` ran once more as `second`; and
/// the names of those that passed then.
pub fn judge(ended: Vec<Ended>, failed: &[FailedTests], second: Ended) -> (Ended, Vec<String>) {
    let mut sum = Ended::default();
    for batch in ended {
        sum.tally += batch.tally;
    }
    sum.tally.failed = 0;
    sum.tally += second.tally;
    sum.unwell = second.unwell;
    let count: usize = failed.iter().map(|of| of.names.len()).sum();
    let missing = (count as u64).saturating_sub(second.tally.ran());
    if missing > 0 {
        // A test that did not run has not passed.
        sum.tally.failed += missing;
        let unwell = format!("{missing} tests that were to run once more did not");
        sum.unwell.push(unwell);
    }
    let fails_again = |program: &TestProgram, name: &String| {
        let mut again = second.failed.iter().filter(|of| of.program == *program);
        again.any(|of| of.names.contains(name))
    };
    // Where more than tests went wrong the second time, none is known to have passed.
    let known = sum.tally.failed == 0 || !second.failed.is_empty();
    let names = failed.iter().filter(|_| known).flat_map(|of| {
        let passed = of
            .names
            .iter()
            .filter(|name| !fails_again(&of.program, name));
        passed.map(|name| format!("{} {name}", of.program.name))
    });
    let names = names.collect();
    (sum, names)
}

#[cfg(test)]
mod tests {
    use super::super::libtest::Tally;
    use super::*;

    fn failed(program: &str, names: &[&str]) -> FailedTests {
        FailedTests {
            program: TestProgram {
                name: program.to_owned(),
                executable: format!("/bin/{program}").into(),
                directory: "/".into(),
                needs_kvm: true,
            },
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn ended(passed: u64, failed: Vec<FailedTests>) -> Ended {
        let count: usize = failed.iter().map(|of| of.names.len()).sum();
        Ended {
            tally: Tally {
                passed,
                failed: count as u64,
            },
            unwell: failed.iter().map(|of| of.program.name.clone()).collect(),
            failed,
        }
    }

    #[test]
    fn only_a_few_failed_tests_of_a_box_run_again() {
        let one = failed("a", &["x"]);
        let run = |place, batches: &[Ended]| choose(place, batches).len();
        assert_eq!(run(Place::Box, &[ended(3, vec![])]), 0);
        assert_eq!(
            run(Place::Box, &[ended(3, vec![one.clone()]), ended(1, vec![])]),
            1
        );
        assert_eq!(run(Place::Native, &[ended(3, vec![one.clone()])]), 0);
        let names: Vec<_> = (0..LIMIT).map(|nth| nth.to_string()).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let many = failed("b", &names);
        assert_eq!(run(Place::Box, &[ended(3, vec![one.clone(), many])]), 0);
        let mut crashed = ended(1, vec![]);
        crashed.tally += Tally::FAILURE;
        crashed.unwell.push("c".to_owned());
        assert_eq!(run(Place::Box, &[ended(3, vec![one]), crashed]), 0);
    }

    #[test]
    fn the_selection_names_the_tests_of_the_program_only() {
        let all = [failed("a", &["x", "y"]), failed("b", &["z"])];
        let words = selection(&all, &all[0].program);
        assert_eq!(words, ["--exact", "x", "y"]);
    }

    #[test]
    fn a_test_has_failed_when_it_fails_twice_and_is_named_when_it_passes_alone() {
        let first = [failed("a", &["x", "y"])];
        let batches = || vec![ended(5, first.to_vec()), ended(7, vec![])];
        let (sum, names) = judge(batches(), &first, ended(2, vec![]));
        assert_eq!((sum.tally.passed, sum.tally.failed), (14, 0));
        assert_eq!(names, ["a x", "a y"]);
        assert!(sum.unwell.is_empty());

        let (sum, names) = judge(batches(), &first, ended(1, vec![failed("a", &["y"])]));
        assert_eq!((sum.tally.passed, sum.tally.failed), (13, 1));
        assert_eq!(names, ["a x"]);
        assert_eq!(sum.unwell, ["a"]);

        let mut crashed = ended(0, vec![]);
        crashed.tally += Tally::FAILURE;
        let (sum, names) = judge(batches(), &first, crashed);
        assert_eq!((sum.tally.passed, sum.tally.failed), (12, 2));
        assert!(names.is_empty());

        let (sum, names) = judge(batches(), &first, ended(0, vec![]));
        assert_eq!((sum.tally.passed, sum.tally.failed), (12, 2));
        assert!(names.is_empty());
        assert_eq!(sum.unwell.len(), 1);
    }
}
