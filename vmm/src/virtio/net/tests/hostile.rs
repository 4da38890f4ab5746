//! Drivers that break the rules.

use proptest::prelude::*;

use super::*;

#[test]
fn a_driver_that_breaks_the_rules_needs_a_reset() {
    let outside = writable(RAM_SIZE - 100, 2048);
    for (what, queue, chain) in [
        ("too short for a header", RX, &[writable(place(0), 11)][..]),
        (
            "something to read",
            RX,
            &[readable(place(0), 12), writable(place(1), 2048)],
        ),
        ("partly outside memory", RX, &[outside]),
        ("far outside memory", RX, &[writable(u64::MAX - 10, 2048)]),
        (
            "something to write",
            TX,
            &[readable(place(0), 100), writable(place(1), 1)],
        ),
        ("outside memory", TX, &[readable(RAM_SIZE, 100)]),
        ("past 2^64", TX, &[readable(u64::MAX - 10, 100)]),
    ] {
        let mut link = link(MERGEABLE);
        link.arrive(&frame(100, 1));
        link.driver.offer(queue, chain);
        link.driver.notify(queue);
        link.serve();
        assert!(link.driver.needs_reset(), "{what}");
        assert_eq!(link.sent(), None, "{what}");
        assert_eq!(link.interest(), Interest::NONE, "{what}");
        // And it can have one.
        link.driver = Driver {
            rings: cold().driver.rings,
            ..link.driver
        };
        for ring in &link.driver.rings {
            ring.set_avail_idx(&link.driver.ram, 0);
            link.driver.put(ring.used + 2, &[0; 2]);
        }
        link.driver.initialise(COMMON_FEATURES & !F_EVENT_IDX);
        link.offer_rx(0, 2048);
        link.arrive(&frame(100, 2));
        assert!(link.serve().interrupt, "{what}");
    }
}

#[test]
fn hostile_rings_are_survived() {
    let ends = std::cell::RefCell::new(Vec::new());
    assert_survives_hostile_rings(TX, || {
        let (net, host, poll) = net();
        ends.borrow_mut().push((host, poll));
        net
    });
}

#[test]
fn huge_lengths_take_no_time_and_no_memory() {
    let mut link = link(MERGEABLE);
    link.driver.offer(TX, &[readable(place(0), u32::MAX)]);
    assert!(link.driver.notify(TX).interrupt);
    assert_eq!(link.sent(), None);
    link.driver.offer(RX, &[writable(place(0), u32::MAX)]);
    link.arrive(&frame(100, 1));
    assert!(link.serve().interrupt);
    // Only as much of it is looked at as a frame can be long.
    assert_eq!(link.driver.take_used(RX), [(0, 100)]);
    // A chain must not be longer than 2^32 bytes (section 2.7.4.1).
    link.driver.offer(RX, &[writable(place(0), u32::MAX); 64]);
    link.driver.notify(RX);
    assert!(link.driver.needs_reset());
}

#[test]
fn an_index_that_jumps_needs_a_reset() {
    let mut link = link(MERGEABLE);
    link.driver.rings[RX].set_avail_idx(&link.driver.ram, 1000);
    link.arrive(&frame(100, 1));
    link.driver.notify(RX);
    assert!(link.driver.needs_reset());
}

#[derive(Debug, Clone)]
enum Step {
    Arrive(usize),
    Notify(usize),
    Chain(usize, Vec<(u32, u32, bool)>),
    Read,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![0_u32..100, 1500_u32..1600, 60_000_u32..70_000, any::<u32>()];
    let chain = proptest::collection::vec((any::<u32>(), len, any::<bool>()), 1..5);
    prop_oneof![
        4 => (13_usize..70_000).prop_map(Step::Arrive),
        4 => (0_usize..2).prop_map(Step::Notify),
        8 => (0_usize..2, chain).prop_map(|(queue, chain)| Step::Chain(queue, chain)),
        2 => Just(Step::Read),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #[test]
    fn nothing_a_driver_does_panics_or_hangs(
        features in prop_oneof![Just(0), Just(MERGEABLE), Just(MERGEABLE | CHECKSUM | TSO4)],
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut link = link(features);
        let ram = link.driver.ram.clone();
        let state = link.driver.transport.save();
        let mut offered = [0, 0];
        for step in steps {
            match step {
                Step::Arrive(len) => {
                    let frame = frame(len, 1);
                    let _ = rustix::net::send(&link.host, &frame, SendFlags::empty());
                }
                Step::Notify(queue) => {
                    let mut signals = link.driver.notify(queue);
                    for _ in 0..100 {
                        if !signals.more_work {
                            break;
                        }
                        signals = link.driver.transport.continue_work(&ram);
                    }
                    prop_assert!(!signals.more_work);
                }
                Step::Chain(queue, chain) => {
                    let chain: Vec<Desc> = chain
                        .into_iter()
                        .map(|(at, len, odd)| {
                            // Around the end of memory it is interesting.
                            let base = if at % 7 == 0 { RAM_SIZE - 64 } else { BUFFERS };
                            let addr = base + u64::from(at % 0x1_0000);
                            // Now and then one of the wrong kind.
                            let is_writable = (queue == RX) != (odd && at % 5 == 0);
                            if is_writable { writable(addr, len) } else { readable(addr, len) }
                        })
                        .collect();
                    link.driver.offer(queue, &chain);
                    offered[queue] += 1;
                }
                Step::Read => while link.sent().is_some() {},
                Step::Reset => {
                    link.driver.transport.restore(&state, &ram).unwrap();
                    prop_assert_eq!(link.driver.transport.save(), state.clone());
                    return Ok(());
                }
            }
            link.serve();
        }
        for queue in [RX, TX] {
            prop_assert!(link.driver.take_used(queue).len() <= offered[queue]);
        }
    }
}
