//! The place in which the integration tests run is one where a microVM can run;
//! `snapback doctor` says so, for reasons that it tried.

use snapback_vmm::probe::probe;

#[test]
fn the_host_of_the_integration_tests_is_found_usable() {
    let report = probe();
    let failures: Vec<_> = report.failures().collect();
    assert!(report.ok, "{failures:#?}");
}

#[test]
fn the_probe_can_be_repeated() {
    let first: Vec<_> = probe()
        .checks
        .into_iter()
        .map(|check| (check.name, check.ok))
        .collect();
    let second: Vec<_> = probe()
        .checks
        .into_iter()
        .map(|check| (check.name, check.ok))
        .collect();
    assert_eq!(first, second);
}
