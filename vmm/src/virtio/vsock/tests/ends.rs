//! How connections end: in one direction, in both, by either side.

use super::*;

#[test]
fn closing_in_both_directions_ends_the_connection() {
    let (mut guest, mut host) = Guest::connected();
    guest.send(OP_RW, 0, b"last words");
    guest.send(OP_SHUTDOWN, SHUTDOWN_BOTH, &[]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    let mut got = String::new();
    host.read_to_string(&mut got).unwrap();
    assert_eq!(got, "last words");
    assert_eq!(guest.save().channel, None);
    // The channel can be opened again, with a new host end.
    let _host = guest.attach();
    guest.send(OP_REQUEST, 0, &[]);
    assert_eq!(guest.one_packet().0.op, OP_RESPONSE);
}

#[test]
fn half_closed_by_the_guest() {
    let (mut guest, mut host) = Guest::connected();
    guest.send(OP_RW, 0, b"question");
    guest.send(OP_SHUTDOWN, SHUTDOWN_SEND, &[]);
    let mut got = String::new();
    host.read_to_string(&mut got).unwrap();
    assert_eq!(got, "question");
    host.write_all(b"answer").unwrap();
    let _ = guest.host_ready();
    assert_eq!(guest.one_packet().1, b"answer");
    // It has said that it sends no more.
    guest.send(OP_RW, 0, b"!");
    assert_eq!(guest.one_packet().0.op, OP_RST);
}

#[test]
fn half_closed_by_the_host() {
    let (mut guest, mut host) = Guest::connected();
    host.write_all(b"all").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let _ = guest.host_ready();
    let packets = guest.packets();
    let ops: Vec<u16> = packets.iter().map(|(header, _)| header.op).collect();
    assert_eq!(ops, [OP_RW, OP_SHUTDOWN]);
    assert_eq!(packets[1].0.flags, SHUTDOWN_SEND);
    assert_eq!(guest.interest(), Some((false, false)), "only its end");
    guest.send(OP_RW, 0, b"still here");
    let mut got = [0; 10];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still here");
    drop(host);
    guest.settle();
    let (end, _) = guest.one_packet();
    assert_eq!((end.op, end.flags), (OP_SHUTDOWN, SHUTDOWN_BOTH));
    assert!(
        guest.only().unwrap().host.is_none(),
        "its descriptor is closed"
    );
    // What was on its way is lost, and the guest closes in its own time.
    guest.send(OP_RW, 0, b"?");
    guest.send(OP_SHUTDOWN, SHUTDOWN_BOTH, &[]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    assert!(guest.only().is_none());
}

#[test]
fn a_reset_by_the_guest_gets_no_answer() {
    let (mut guest, mut host) = Guest::connected();
    guest.send(OP_RST, 0, &[]);
    assert_eq!(guest.packets(), []);
    assert!(is_closed(&mut host));
}

#[test]
fn what_the_socket_takes_half_of_arrives_before_the_end() {
    let (mut guest, mut host) = Guest::connected();
    let sent = pattern(BUF_ALLOC as usize, 5);
    guest.send(OP_RW, 0, &sent);
    let connection = |guest: &Guest| guest.only().map(|connection| connection.pending.len());
    // More than the first of the packet's two buffers, and less than both.
    let pending = connection(&guest).unwrap();
    assert!(pending > 0 && pending < sent.len() * 2 / 3, "{pending}");
    guest.send(OP_SHUTDOWN, SHUTDOWN_BOTH, &[]);
    // Not all has arrived: the guest gets credit, and no end.
    assert!(
        guest
            .packets()
            .iter()
            .all(|(header, _)| header.op == OP_CREDIT_UPDATE)
    );
    let mut got = Vec::new();
    let mut bytes = vec![0; 50_000];
    loop {
        match host.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => got.extend_from_slice(&bytes[..read]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        let _ = guest.host_ready();
    }
    assert!(got == sent);
    let last = guest.packets().pop().unwrap();
    assert_eq!((last.0.op, connection(&guest)), (OP_RST, None));
}

#[test]
fn a_host_that_receives_no_more() {
    let (mut guest, mut host) = Guest::connected();
    host.shutdown(Shutdown::Read).unwrap();
    guest.settle();
    assert_eq!(
        guest.packets(),
        [],
        "nobody can know before something is sent"
    );
    guest.send(OP_RW, 0, &[1; 5000]);
    let (end, _) = guest.one_packet();
    assert_eq!((end.op, end.flags), (OP_SHUTDOWN, SHUTDOWN_RECEIVE));
    assert_eq!(end.fwd_cnt, 5000, "its credit comes back");
    // The other direction goes on.
    host.write_all(b"more").unwrap();
    guest.settle();
    assert_eq!(guest.one_packet().1, b"more");
    drop(host);
    guest.settle();
    let (end, _) = guest.one_packet();
    assert_eq!((end.op, end.flags), (OP_SHUTDOWN, SHUTDOWN_BOTH));
}

#[test]
fn a_host_that_goes_with_something_unsaid() {
    let (mut guest, mut host) = Guest::connected();
    host.write_all(b"last words").unwrap();
    drop(host);
    guest.settle();
    let packets = guest.packets();
    let ops: Vec<(u16, u32)> = packets.iter().map(|(h, _)| (h.op, h.flags)).collect();
    let ends = [(OP_SHUTDOWN, SHUTDOWN_SEND), (OP_SHUTDOWN, SHUTDOWN_BOTH)];
    assert_eq!(ops, [&[(OP_RW, 0)], &ends[..]].concat());
    assert_eq!(packets[0].1, b"last words");
    guest.send(OP_RST, 0, &[]);
    assert_eq!(guest.packets(), []);
    assert!(guest.only().is_none());
}

#[test]
fn a_host_that_goes_without_reading_resets() {
    let (mut guest, host) = Guest::connected();
    guest.send(OP_RW, 0, b"unread");
    drop(host);
    guest.settle();
    assert_eq!(guest.one_packet().0.op, OP_RST);
    assert!(guest.only().is_none());
}

#[test]
fn what_waits_for_a_host_that_goes_is_lost() {
    let (mut guest, host) = Guest::connected();
    while guest.only().unwrap().pending.is_empty() {
        guest.send(OP_RW, 0, &[7; 32 << 10]);
    }
    guest.packets();
    drop(host);
    guest.settle();
    assert_eq!(guest.one_packet().0.op, OP_RST);
    assert!(guest.driver.transport.is_quiet());
}

/// What a guest was told of the end of its only connection.
#[derive(Default)]
struct Seen {
    told: u32,
    reset: bool,
}

impl Seen {
    fn by(&mut self, guest: &mut Guest) {
        guest.settle();
        for (header, _) in guest.packets() {
            assert!(!self.reset, "nothing follows a reset");
            self.reset |= header.op == OP_RST;
            if header.op == OP_SHUTDOWN {
                assert_eq!(header.flags & self.told, self.told, "ends do not come back");
                self.told = header.flags;
            }
        }
    }
}

#[test]
fn every_order_of_ends_leaves_nothing_behind() {
    type End = fn(&mut Guest, &mut Option<UnixStream>);
    let ends: [End; 5] = [
        |guest, _| {
            guest.send(OP_SHUTDOWN, SHUTDOWN_SEND, &[]);
        },
        |guest, _| {
            guest.send(OP_SHUTDOWN, SHUTDOWN_RECEIVE, &[]);
        },
        |_, host| {
            let _ = host.as_ref().map(|host| host.shutdown(Shutdown::Write));
        },
        |_, host| {
            let _ = host.as_ref().map(|host| host.shutdown(Shutdown::Read));
        },
        |_, host| drop(host.take()),
    ];
    for order in 0..5_usize.pow(4) {
        let (mut guest, host) = Guest::connected();
        let mut host = Some(host);
        let mut seen = Seen::default();
        for nth in 0..4 {
            let end = order / 5_usize.pow(nth) % 5;
            // A guest does not speak of what is gone.
            if end > 1 || !seen.reset {
                ends[end](&mut guest, &mut host);
            }
            seen.by(&mut guest);
        }
        drop(host);
        seen.by(&mut guest);
        if guest.only().is_some() {
            assert_eq!(seen.told, SHUTDOWN_BOTH, "{order}");
            guest.send(OP_SHUTDOWN, SHUTDOWN_BOTH, &[]);
            seen.by(&mut guest);
        }
        assert!(guest.only().is_none() && seen.reset, "{order}");
        assert_eq!(guest.save().resets, []);
    }
}
