//! What a guest must not do, and what becomes of it.

use super::*;

#[test]
fn only_the_channel_with_a_host_end_is_accepted() {
    let mut guest = Guest::new();
    guest.give_buffers(8);
    guest.send(OP_REQUEST, 0, &[]);
    let (answer, _) = guest.one_packet();
    assert_eq!(
        (answer.op, answer.src_port, answer.dst_port),
        (OP_RST, CHANNEL_PORT, GUEST_PORT)
    );
    let _host = guest.attach();
    for wrong in [
        Header {
            dst_port: CHANNEL_PORT + 1,
            ..Guest::header(OP_REQUEST, 0, 0)
        },
        Header {
            dst_cid: 77,
            ..Guest::header(OP_REQUEST, 0, 0)
        },
        Header {
            kind: 2,
            ..Guest::header(OP_REQUEST, 0, 0)
        },
        Guest::header(OP_RW, 0, 0),
        Guest::header(OP_SHUTDOWN, 3, 0),
        Guest::header(OP_CREDIT_REQUEST, 0, 0),
        Guest::header(0xffff, 0, 0),
    ] {
        guest.send_raw(&wrong, &[]);
        let (answer, _) = guest.one_packet();
        let expected = Header {
            src_cid: wrong.dst_cid,
            dst_cid: GUEST_CID.into(),
            src_port: wrong.dst_port,
            dst_port: GUEST_PORT,
            kind: wrong.kind,
            op: OP_RST,
            ..Header::default()
        };
        assert_eq!(answer, expected);
    }
    for unanswered in [
        Guest::header(OP_RST, 0, 0),
        Header {
            src_cid: 9,
            ..Guest::header(OP_REQUEST, 0, 0)
        },
    ] {
        guest.send_raw(&unanswered, &[]);
        assert_eq!(guest.packets(), []);
    }
    guest.send(OP_REQUEST, 0, &[]);
    let (answer, _) = guest.one_packet();
    assert_eq!(
        (answer.op, answer.buf_alloc, answer.fwd_cnt),
        (OP_RESPONSE, BUF_ALLOC, 0)
    );
    // There is one channel.
    guest.send_raw(
        &Header {
            src_port: 5,
            ..Guest::header(OP_REQUEST, 0, 0)
        },
        &[],
    );
    assert_eq!(guest.one_packet().0.op, OP_RST);
}

#[test]
fn a_guest_that_sends_more_than_its_room_is_reset() {
    let (mut guest, mut host) = Guest::connected();
    guest.driver.transport.device_mut().detach_channel();
    let chunk = pattern(32 << 10, 1);
    for _ in 0..8 {
        guest.send(OP_RW, 0, &chunk);
        assert_eq!(guest.packets(), [], "exactly the room");
    }
    guest.send(OP_RW, 0, &[1]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    assert!(is_closed(&mut host));
    assert_eq!(guest.save().connections, []);
}

#[test]
fn a_packet_shorter_than_it_says_resets_its_connection() {
    let (mut guest, _host) = Guest::connected();
    let lie = Header {
        len: 100,
        ..Guest::header(OP_RW, 0, 0)
    };
    guest.send_raw(&lie, &[1; 99]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    // Too short for a header: nobody knows whose it is.
    guest.driver.offer(TX, &[readable(BUFFERS, 43)]);
    let _ = guest.driver.notify(TX);
    assert_eq!(guest.driver.take_used(TX).len(), 1);
    assert_eq!(guest.packets(), []);
    assert!(!guest.driver.needs_reset());
}

#[test]
fn buffers_outside_memory_need_a_reset() {
    let (mut guest, _host) = Guest::connected();
    guest
        .driver
        .put(BUFFERS, &Guest::header(OP_RW, 0, 10).encode());
    guest
        .driver
        .offer(TX, &[readable(BUFFERS, 44), readable(RAM_SIZE - 5, 10)]);
    let _ = guest.driver.notify(TX);
    assert!(guest.driver.needs_reset());
    let (mut guest, mut host) = Guest::connected();
    while !guest.driver.needs_reset() {
        guest.driver.offer(RX, &[writable(RAM_SIZE - 50, 4096)]);
        host.write_all(&[1; 100]).unwrap();
        let _ = guest.host_ready();
    }
    // Nothing can be done about it: nobody is woken for it.
    host.write_all(&[1; 100]).unwrap();
    assert_eq!(guest.poll.ready().unwrap(), []);
}

#[test]
fn answers_are_bounded() {
    let mut guest = Guest::new();
    // No buffers: answers pile up to the bound, then packets wait in their queue.
    guest
        .driver
        .put(BUFFERS, &Guest::header(OP_REQUEST, 0, 0).encode());
    let mut used = 0;
    for _ in 0..10 {
        for _ in 0..100 {
            if guest.driver.rings[TX].avail_idx as usize - used < 128 {
                guest.driver.offer(TX, &[readable(BUFFERS, 44)]);
            }
        }
        let mut signals = guest.driver.notify(TX);
        while signals.more_work {
            signals = guest.driver.transport.continue_work(&guest.driver.ram);
        }
        used += guest.driver.take_used(TX).len();
        assert!(guest.driver.transport.device().outbox.len() <= device::OUTBOX_SIZE);
    }
    assert_eq!(used, device::OUTBOX_SIZE);
    assert!(!guest.driver.transport.is_quiet());
    // Buffers let everything go on.
    let total = guest.driver.rings[TX].avail_idx as usize;
    let mut refused = 0;
    guest.give_buffers(64);
    while refused < total {
        let packets = guest.packets();
        assert!(!packets.is_empty(), "stuck at {refused} of {total}");
        assert!(packets.iter().all(|(header, _)| header.op == OP_RST));
        refused += packets.len();
    }
    assert!(guest.driver.transport.is_quiet());
}

/// What a hostile guest or a busy host does next.
#[derive(Debug, Clone)]
enum Act {
    Packet {
        op: u16,
        flags: u32,
        len: u32,
        port: u32,
        credit: (u32, u32),
        real: u16,
    },
    Garbage(Vec<u8>),
    Buffer(u32),
    Host(Vec<u8>),
    HostReads,
    Attach,
    Detach,
    SaveRestore,
}

fn act() -> impl Strategy<Value = Act> {
    let packet = (
        0_u16..9,
        0_u32..5,
        0_u32..5000,
        0_u32..3,
        any::<(u32, u32)>(),
        0_u16..5000,
    );
    prop_oneof![
        4 => packet.prop_map(|(op, flags, len, port, credit, real)| {
            Act::Packet { op, flags, len, port, credit, real }
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..100).prop_map(Act::Garbage),
        4 => (0_u32..5000).prop_map(Act::Buffer),
        2 => proptest::collection::vec(any::<u8>(), 0..9000).prop_map(Act::Host),
        2 => Just(Act::HostReads),
        1 => Just(Act::Attach),
        1 => Just(Act::Detach),
        1 => Just(Act::SaveRestore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn nothing_a_guest_does_panics_or_grows(acts in proptest::collection::vec(act(), 1..80)) {
        let (mut guest, mut host) = Guest::connected();
        for act in acts {
            match act {
                Act::Packet { op, flags, len, port, credit, real } => {
                    let header = Header {
                        src_port: GUEST_PORT + port,
                        buf_alloc: credit.0,
                        fwd_cnt: credit.1,
                        len,
                        ..Guest::header(op, flags, 0)
                    };
                    guest.send_raw(&header, &vec![7; real.into()]);
                }
                Act::Garbage(bytes) => {
                    guest.driver.put(BUFFERS, &bytes);
                    guest.driver.offer(TX, &[readable(BUFFERS, bytes.len() as u32)]);
                    let _ = guest.driver.notify(TX);
                }
                Act::Buffer(len) => {
                    guest.driver.offer(RX, &[writable(RX_BUFFERS, len)]);
                    let _ = guest.driver.notify(RX);
                }
                Act::Host(bytes) => {
                    let _ = host.write(&bytes);
                }
                Act::HostReads => {
                    let _ = host.read(&mut [0; 9000]);
                }
                Act::Attach => host = guest.attach(),
                Act::Detach => guest.driver.transport.device_mut().detach_channel(),
                Act::SaveRestore => {
                    if guest.driver.transport.is_quiet() {
                        let state = guest.driver.transport.save();
                        let restored = guest.driver.transport.restore(&state, &guest.driver.ram);
                        prop_assert_eq!(restored, Ok(()));
                        prop_assert_eq!(guest.driver.transport.save(), state);
                    }
                }
            }
            let mut signals = guest.host_ready();
            let mut rounds = 0;
            while signals.more_work {
                signals = guest.driver.transport.continue_work(&guest.driver.ram);
                rounds += 1;
                prop_assert!(rounds < 10, "work without end");
            }
            let device = guest.driver.transport.device();
            prop_assert!(device.outbox.len() <= device::OUTBOX_SIZE + MAX_CONNECTIONS);
            prop_assert!(device.connections.len() <= 1);
            for connection in device.connections.values() {
                prop_assert!(connection.pending.len() <= BUF_ALLOC as usize);
            }
        }
    }
}
