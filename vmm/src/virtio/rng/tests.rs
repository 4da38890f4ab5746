//! Tests of the entropy device, through real rings.

#![allow(
    clippy::cast_possible_truncation,
    unused_must_use,
    reason = "tests choose their own numbers, and look at effects where they matter"
)]

use proptest::prelude::*;

use super::Rng;
use crate::virtio::testing::{
    BUFFERS, Desc, Driver, RAM_SIZE, assert_survives_hostile_rings, readable, writable,
};
use crate::virtio::transport::MmioDevice;
use crate::virtio::{COMMON_FEATURES, F_EVENT_IDX};

fn rng() -> Driver<Rng> {
    Driver::live(Rng::default())
}

/// Offers one chain and returns how many bytes of it were written.
fn ask(driver: &mut Driver<Rng>, chain: &[Desc]) -> u32 {
    let head = driver.offer(0, chain);
    assert!(driver.notify(0).interrupt);
    let used = driver.take_used(0);
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].0, u32::from(head));
    used[0].1
}

#[test]
fn it_says_what_it_is() {
    let driver = rng();
    assert_eq!(driver.read(0x8), 4, "entropy source");
    assert_eq!(driver.read(0x100), 0, "no configuration");
}

#[test]
fn buffers_are_filled_and_no_byte_comes_twice() {
    let mut driver = rng();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..50 {
        assert_eq!(ask(&mut driver, &[writable(BUFFERS, 64)]), 64);
        assert!(seen.insert(driver.get(BUFFERS, 64)), "the same bytes again");
    }
    assert_eq!(
        driver.get(BUFFERS + 64, 64),
        [0; 64],
        "and no more than that"
    );
}

#[test]
fn a_request_is_answered_with_a_bounded_number_of_bytes() {
    let mut driver = rng();
    for room in [1, 255, 256, 257, 1 << 20] {
        let written = ask(&mut driver, &[writable(BUFFERS, room)]);
        assert_eq!(written, room.min(256));
    }
    // Huge lengths are not believed, only used as far as the bound goes.
    assert_eq!(ask(&mut driver, &[writable(BUFFERS, u32::MAX)]), 256);
    assert_eq!(driver.get(BUFFERS + 256, 4096), [0; 4096]);
}

#[test]
fn buffers_may_be_in_pieces_of_any_size() {
    let mut driver = rng();
    let pieces = [
        writable(BUFFERS, 1),
        writable(BUFFERS + 100, 0),
        writable(BUFFERS + 0xfff, 200),
        writable(BUFFERS + 0x3000, 200),
    ];
    assert_eq!(ask(&mut driver, &pieces), 256);
    assert_ne!(driver.get(BUFFERS + 0xfff, 200), [0; 200]);
    assert_ne!(driver.get(BUFFERS + 0x3000, 55), [0; 55]);
    assert_eq!(driver.get(BUFFERS + 0x3000 + 55, 145), [0; 145]);
}

#[test]
fn what_is_filled_is_dirty() {
    let mut driver = rng();
    let at = BUFFERS + 0x10_0000;
    ask(&mut driver, &[writable(at - 8, 64)]);
    let dirty: Vec<bool> = (0..4)
        .map(|page| driver.is_dirty(at - 8192 + 4096 * page))
        .collect();
    assert_eq!(dirty, [false, true, true, false]);
}

#[test]
fn a_driver_that_breaks_the_rules_needs_a_reset() {
    for chain in [
        &[writable(BUFFERS, 0)][..],
        &[readable(BUFFERS, 64)],
        &[readable(BUFFERS, 16), writable(BUFFERS, 64)],
        &[writable(BUFFERS, 64), readable(BUFFERS, 16)],
        &[writable(RAM_SIZE, 64)],
        &[writable(RAM_SIZE - 32, 64)],
        &[writable(u64::MAX, 64)],
    ] {
        let mut driver = rng();
        driver.offer(0, chain);
        let _ = driver.notify(0);
        assert!(driver.needs_reset(), "{chain:?}");
        assert_eq!(driver.take_used(0), []);
    }
}

#[test]
fn one_call_fills_one_queue_of_buffers() {
    let mut driver = rng();
    for _ in 0..8 {
        driver.offer(0, &[writable(BUFFERS, 64)]);
    }
    let mut signals = driver.notify(0);
    let mut used = driver.take_used(0).len();
    assert_eq!(used, 8);
    while signals.more_work {
        signals = driver.transport.continue_work(&driver.ram);
        used += driver.take_used(0).len();
    }
    assert_eq!(used, 8);
    assert!(driver.transport.is_quiet());
}

#[test]
fn hostile_rings_are_survived() {
    assert_survives_hostile_rings(0, Rng::default);
}

#[test]
fn state_restores() {
    let mut driver = Driver::live_with(Rng::default(), COMMON_FEATURES | F_EVENT_IDX);
    let ram = driver.ram.clone();
    driver.offer(0, &[writable(BUFFERS, 64)]);
    crate::bus::testing::assert_restores(
        &mut driver.transport,
        |transport| transport.save(),
        |transport| {
            let _ = transport.notify(0, &ram);
        },
        |transport, state| transport.restore(state, &ram).unwrap(),
    );
}

proptest! {
    #[test]
    fn arbitrary_rings_are_survived(
        table in proptest::collection::vec((any::<u32>(), any::<u16>(), 0_u16..8, 0_u16..8), 8),
        heads in proptest::collection::vec(0_u16..9, 1..8),
    ) {
        let mut driver = rng();
        for (index, (addr, len, flags, next)) in (0..).zip(&table) {
            // Around the buffers and just out of memory are the interesting places.
            let base = if addr % 5 == 0 { RAM_SIZE - 64 } else { BUFFERS };
            let addr = base + u64::from(addr % 256);
            driver.rings[0].write_desc(&driver.ram, index, addr, u32::from(*len), *flags, *next);
        }
        for head in &heads {
            driver.rings[0].publish(&driver.ram, *head);
        }
        let _ = driver.notify(0);
        let used = driver.take_used(0);
        prop_assert!(used.len() <= heads.len());
        prop_assert!(used.iter().all(|(_, written)| *written <= 256));
    }
}
