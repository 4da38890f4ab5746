//! Frames to the guest.

use super::*;

fn buffers_of(link: &Link, nth: u64) -> u16 {
    let bytes = link.driver.get(place(nth) + 10, 2);
    u16::from_le_bytes([bytes[0], bytes[1]])
}

#[test]
fn a_frame_arrives_exact_in_one_buffer() {
    let mut link = link(0);
    let head = link.offer_rx(0, 2048);
    let mut sent = frame(1514 + 12, 5);
    sent[0] = 1;
    link.arrive(&sent);
    assert!(link.serve().interrupt);
    assert_eq!(link.driver.take_used(RX), [(head.into(), 1526)]);
    sent[10] = 1;
    assert_eq!(link.driver.get(place(0), 1526), sent);
    assert_eq!(link.driver.get(place(0) + 1526, 1), [0]);
    assert!(link.driver.is_dirty(place(0)) && !link.driver.is_dirty(place(0) + 4096));
}

#[test]
fn a_large_frame_is_spread_over_buffers_that_the_driver_gets_together() {
    let mut link = link(MERGEABLE | CHECKSUM | TSO4);
    for nth in 0..20 {
        link.offer_rx(nth, 4096);
    }
    let mut sent: Vec<u8> = (0..10_000_u32).map(|at| (at % 251) as u8).collect();
    sent[..12].fill(0);
    link.arrive(&sent);
    link.arrive(&frame(60, 9));
    assert!(link.serve().interrupt);
    let used = link.driver.take_used(RX);
    let lens: Vec<u32> = used.iter().map(|(_, len)| *len).collect();
    assert_eq!(lens, [4096, 4096, 10_000 - 8192, 60]);
    let heads: Vec<u32> = used.iter().map(|(head, _)| *head).collect();
    assert_eq!(heads, [0, 1, 2, 3]);
    assert_eq!((buffers_of(&link, 0), buffers_of(&link, 3)), (3, 1));
    let mut got = link.driver.get(place(0), 4096);
    got.extend(link.driver.get(place(1), 4096));
    got.extend(link.driver.get(place(2), 10_000 - 8192));
    got[10] = 0;
    assert_eq!(got, sent);
    assert!(
        !link.driver.is_dirty(place(4)),
        "what stays empty is not touched"
    );
}

#[test]
fn buffers_that_stay_empty_stay_the_drivers() {
    let mut link = link(MERGEABLE);
    for nth in 0..4 {
        link.offer_rx(nth, 1024);
    }
    for round in 0..2_u16 {
        link.arrive(&frame(100, 1));
        link.serve();
        let state = link.driver.transport.save();
        assert_eq!(state.transport.queues[RX].next_avail, round + 1);
        assert_eq!(link.driver.take_used(RX), [(round.into(), 100)]);
    }
}

#[test]
fn without_buffers_nobody_waits_for_frames() {
    let mut link = link(MERGEABLE);
    assert_eq!(link.interest(), Interest::READABLE);
    link.arrive(&frame(100, 1));
    assert!(!link.serve().interrupt);
    assert_eq!(link.interest(), Interest::NONE);
    // Too few for any frame: it might be a long one.
    link.offer_rx(0, 1000);
    assert!(!link.driver.notify(RX).interrupt);
    assert_eq!(link.interest(), Interest::NONE);
    link.offer_rx(1, 1000);
    assert!(link.driver.notify(RX).interrupt);
    assert_eq!(link.driver.take_used(RX), [(0, 100)]);
}

#[test]
fn a_ring_that_is_full_is_enough() {
    let mut link = link(MERGEABLE | CHECKSUM | TSO4);
    // All that the driver can ever offer is less than the longest frame.
    for nth in 0..256 {
        link.offer_rx(nth % 8, 128);
    }
    link.arrive(&frame(200, 1));
    assert!(link.serve().interrupt);
    assert_eq!(link.driver.take_used(RX), [(0, 128), (1, 72)]);
}

#[test]
fn one_call_moves_a_bounded_number_of_frames() {
    let mut link = link(0);
    for nth in 0..200 {
        link.offer_rx(nth % 8, 2048);
    }
    for _ in 0..100 {
        link.arrive(&frame(100, 1));
    }
    assert!(link.serve().interrupt);
    assert_eq!(link.driver.take_used(RX).len(), 64);
    link.serve();
    assert_eq!(link.driver.take_used(RX).len(), 36);
    assert!(!link.serve().interrupt);
}

#[test]
fn interrupts_come_when_the_driver_wants_one_though_it_skips_entries() {
    let mut link = cold();
    link.driver.initialise(COMMON_FEATURES | MERGEABLE);
    for nth in 0..16 {
        link.offer_rx(nth, 512);
    }
    // For the second entry: it is used together with its neighbours.
    link.driver.rings[RX].set_used_event(&link.driver.ram, 1);
    link.arrive(&frame(1500, 1));
    assert!(link.serve().interrupt);
    // For one that is not among the next three.
    link.driver.rings[RX].set_used_event(&link.driver.ram, 6);
    link.arrive(&frame(1500, 1));
    assert!(!link.serve().interrupt);
    link.arrive(&frame(100, 1));
    assert!(link.serve().interrupt);
}

#[test]
fn a_tap_that_is_gone_is_not_waited_for() {
    let Link {
        mut driver,
        host,
        poll,
    } = link(0);
    driver.offer(RX, &[writable(place(0), 2048)]);
    drop(host);
    let ready = poll.ready().unwrap();
    driver.transport.host_ready(&ready, &driver.ram);
    assert_eq!(driver.transport.device().tap.interest(), Interest::NONE);
    assert_eq!(poll.ready().unwrap(), []);
    assert!(!driver.needs_reset());
    driver.offer(TX, &[readable(place(1), 100)]);
    assert!(driver.notify(TX).interrupt, "sent to nobody");
}
