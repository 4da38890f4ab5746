//! `snapback doctor`, in the place that was chosen because it passes there.

use crate::harness::cli::snapback;

#[test]
fn doctor_finds_this_host_usable_because_a_guest_really_ran() {
    let run = snapback(&["doctor", "--json"]);
    assert!(run.success, "{run:?}");
    let report = run.json();
    assert_eq!(report["ok"], true);
    let checks = report["checks"].as_array().unwrap();
    let check = |name: &str| {
        let found = checks.iter().find(|check| check["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not in {report}"))
    };
    // Ring 0, ring 3 and back, in long mode: processor flags were not believed.
    let guest = check("kvm-guest");
    assert_eq!(
        (&guest["ok"], &guest["required"]),
        (&true.into(), &true.into())
    );
    let detail = guest["detail"].as_str().unwrap();
    assert!(
        detail.contains("ring 0 to ring 3 and back by syscall"),
        "{detail}"
    );
    for name in [
        "kvm",
        "kvm-dirty-log",
        "userfaultfd",
        "kernel",
        "memory",
        "cgroup",
        "mkfs.erofs",
    ] {
        assert_eq!(check(name)["ok"], true, "{name}");
    }
    // Said for programs, and said for people.
    let words = snapback(&["doctor"]);
    assert!(words.success, "{words:?}");
    assert!(
        words.stdout.contains("This host can run microVMs."),
        "{words:?}"
    );
    for check in checks {
        assert!(
            words.stdout.contains(check["name"].as_str().unwrap()),
            "{words:?}"
        );
    }
}
