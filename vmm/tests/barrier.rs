//! The branch-predictor barrier between two principals: what the host's kernel is made
//! to do, seen by a probe in KVM. Whether the processor then forgets anything cannot be
//! seen where it is emulated: an emulated one has no predictor.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;
mod tiny;
mod trace;

use std::collections::BTreeMap;
use std::fs;

use harness::Shape;
use tiny::{Running, Tiny};
use trace::Loads;

fn tiny(vcpus: u8) -> Tiny {
    Tiny {
        shape: Shape {
            vcpus,
            ..Shape::SMALL
        },
        counter: 0,
        msr: None,
    }
}

/// The threads of vCPUs, by name, with a field of their `status`.
fn threads(machine: &Running, field: &str) -> BTreeMap<String, (u32, String)> {
    let tasks = format!("/proc/{}/task", machine.vmm.child.id());
    let thread = |number: String| {
        let status = fs::read_to_string(format!("{tasks}/{number}/status")).unwrap();
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim_start_matches(':').trim().to_owned()
        };
        (value("Name"), (number.parse().unwrap(), value(field)))
    };
    let numbers = fs::read_dir(&tasks).unwrap();
    numbers
        .map(|entry| thread(entry.unwrap().file_name().into_string().unwrap()))
        .filter(|(name, _)| name.starts_with("vcpu"))
        .collect()
}

#[test]
fn behind_a_barrier_every_vcpu_is_loaded_after_another_one_and_stays_where_it_was() {
    for vcpus in [1, 2] {
        behind_a_barrier(tiny(vcpus));
    }
}

fn behind_a_barrier(tiny: Tiny) {
    let (memory, state) = tiny.snapshot();
    let again = memory.try_clone().unwrap();
    let mut machine = Running::restore(tiny.shape, memory, &state);
    let before = threads(&machine, "Cpus_allowed_list");
    assert_eq!(before.len(), usize::from(tiny.shape.vcpus), "{before:?}");
    let loads = Loads::watch();
    let mut others = Vec::new();
    for (round, barrier) in [false, true, true, false].into_iter().enumerate() {
        loads.take();
        assert_eq!(machine.wake_with(barrier), tiny.line(), "round {round}");
        let running = threads(&machine, "Cpus_allowed_list");
        let mut loaded = loads.take();
        for (name, (thread, allowed)) in &running {
            let loaded = loaded.remove(thread).expect("a vCPU that runs was loaded");
            if barrier {
                // Its own last, and right before it the one of the empty machine.
                let [.., other, own] = &loaded[..] else {
                    panic!("round {round}, {name}: {loaded:?}");
                };
                assert_eq!(loaded.iter().filter(|vcpu| *vcpu == other).count(), 1);
                assert_ne!(other, own);
                others.push(other.clone());
                assert!(
                    allowed.parse::<u32>().is_ok(),
                    "{name} may run on {allowed}"
                );
            } else {
                assert_eq!(loaded.len(), 1, "round {round}, {name}: {loaded:?}");
                assert_eq!(allowed, &before[name].1, "round {round}, {name}");
            }
        }
        machine.vmm.reset();
        assert_eq!(machine.vmm.differences(), [""; 0]);
        assert_eq!(
            threads(&machine, "Cpus_allowed_list"),
            before,
            "round {round}"
        );
    }
    // One empty machine serves all vCPUs, each time.
    others.dedup();
    assert_eq!(others.len(), 1, "{others:?}");
    drop(loads);
    say_what_it_takes(Running::restore(tiny.shape, again, &state), tiny);
}

/// For whoever counts instructions; elsewhere these figures say nothing.
fn say_what_it_takes(mut machine: Running, tiny: Tiny) {
    let mut took = |barrier| {
        machine.wake_with(barrier);
        machine.vmm.reset();
        machine.run_took
    };
    let without = [(); 3].map(|()| took(false));
    let with = [(); 4].map(|()| took(true));
    let vcpus = tiny.shape.vcpus;
    println!("{vcpus} vCPUs: Run took {without:?}, behind barriers {with:?}");
}
