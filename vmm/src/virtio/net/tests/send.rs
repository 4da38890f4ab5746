//! Frames from the guest.

use super::*;

#[test]
fn a_frame_leaves_exact_with_its_header() {
    let mut link = link(0);
    let mut sent: Vec<u8> = (0..1526_u32).map(|at| (at % 251) as u8).collect();
    sent[10..12].fill(0);
    link.driver.put(place(0), &sent[..12]);
    link.driver.put(place(1) + 4095, &sent[12..500]);
    link.driver.put(place(2), &sent[500..]);
    let head = link.driver.offer(
        TX,
        &[
            readable(place(0), 12),
            readable(place(1) + 4095, 488),
            readable(place(2), 1026),
        ],
    );
    assert!(link.driver.notify(TX).interrupt);
    assert_eq!(link.driver.take_used(TX), [(head.into(), 0)]);
    assert_eq!(link.sent().unwrap(), sent);
    assert_eq!(link.sent(), None);
    link.driver.offer(TX, &[readable(place(3), 100)]);
    link.driver.notify(TX);
    assert_eq!(link.sent().unwrap(), [0; 100]);
    assert!(!link.driver.is_dirty(place(3)));
}

#[test]
fn what_the_tap_does_not_take_waits_and_keeps_its_order() {
    let mut link = link(0);
    rustix::net::sockopt::set_socket_send_buffer_size(
        &link.driver.transport.device().tap,
        16 << 10,
    )
    .unwrap();
    for nth in 0..40_u8 {
        link.driver.put(place(nth.into()), &frame(4000, nth));
        link.driver.offer(TX, &[readable(place(nth.into()), 4000)]);
    }
    link.driver.notify(TX);
    let mut used = link.driver.take_used(TX).len();
    assert!((1..40).contains(&used), "{used}");
    assert!(!link.driver.transport.is_quiet());
    assert!(link.interest().writable);
    assert!(!link.driver.notify(TX).interrupt, "still full");
    let mut got = 0_u8;
    while got < 40 {
        while let Some(bytes) = link.sent() {
            assert_eq!(bytes, frame(4000, got));
            got += 1;
        }
        link.serve();
        used += link.driver.take_used(TX).len();
    }
    assert_eq!(used, 40);
    assert!(link.driver.transport.is_quiet());
    assert!(!link.interest().writable);
}

#[test]
fn what_is_no_frame_is_dropped() {
    let mut link = link(0);
    for len in [0, 1, 11, 12, 25, 65_566, 1 << 20] {
        let head = link.driver.offer(TX, &[readable(place(0), len)]);
        assert!(link.driver.notify(TX).interrupt);
        assert_eq!(link.driver.take_used(TX), [(head.into(), 0)], "{len}");
        assert_eq!(link.sent(), None, "{len}");
    }
    for len in [26, 65_565] {
        link.driver.offer(TX, &[readable(place(0), len)]);
        link.driver.notify(TX);
        assert_eq!(link.sent().unwrap().len() as u32, len);
    }
    assert!(!link.driver.needs_reset());
}

#[test]
fn one_call_moves_a_bounded_number_of_bytes() {
    let mut link = link(0);
    for _ in 0..100 {
        // Too long for a frame, and yet work.
        link.driver.offer(TX, &[readable(place(0), 70_000)]);
    }
    assert!(link.driver.notify(TX).more_work);
    let first = link.driver.take_used(TX).len();
    assert_eq!(first, 32, "of 64 KiB each");
    let mut all = first;
    while link
        .driver
        .transport
        .continue_work(&link.driver.ram)
        .more_work
    {
        all += link.driver.take_used(TX).len();
    }
    assert_eq!(all + link.driver.take_used(TX).len(), 100);
}
