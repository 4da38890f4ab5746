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
            buf_alloc: u32::MAX,
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
    let mut guest = Guest::restored();
    let chunk = pattern(32 << 10, 1);
    for _ in 0..8 {
        guest.send(OP_RW, 0, &chunk);
        assert_eq!(guest.packets(), [], "exactly the room");
    }
    guest.send(OP_RW, 0, &[1]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    assert_eq!(guest.save().channel, None);
    let (mut guest, mut host) = Guest::connected();
    guest.send(OP_RW, 0, &vec![1; BUF_ALLOC as usize + 1]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    assert!(is_closed(&mut host));
}

#[test]
fn a_guest_that_took_more_than_it_got_is_reset() {
    let (mut guest, mut host) = Guest::connected();
    host.write_all(&[1; 100]).unwrap();
    guest.settle();
    guest.packets();
    let lie = Header {
        fwd_cnt: 101,
        ..Guest::header(OP_CREDIT_UPDATE, 0, 0)
    };
    guest.send_raw(&lie, &[]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    assert!(is_closed(&mut host));
    // Nothing at all can have been taken of a connection that is only asked for.
    let _host = guest.attach();
    let early = Header {
        fwd_cnt: 1,
        ..Guest::header(OP_REQUEST, 0, 0)
    };
    guest.send_raw(&early, &[]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    assert!(guest.only().is_none());
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
fn hostile_rings_are_survived() {
    let poll = HostPoll::new().unwrap();
    assert_survives_hostile_rings(TX, || Vsock::new(poll.device(0)));
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
    let mut used = 0;
    for nth in 0..1000_u32 {
        if u32::from(guest.driver.rings[TX].avail_idx) - used == 128 {
            break;
        }
        let header = Header {
            src_port: nth,
            ..Guest::header(OP_REQUEST, 0, 0)
        };
        let at = BUFFERS + u64::from(nth) * 64;
        guest.driver.put(at, &header.encode());
        guest.driver.offer(TX, &[readable(at, 44)]);
        let mut signals = guest.driver.notify(TX);
        while signals.more_work {
            signals = guest.driver.transport.continue_work(&guest.driver.ram);
        }
        used += guest.driver.take_used(TX).len() as u32;
        assert!(guest.driver.transport.device().resets.len() <= resets::MAX_WAITING);
    }
    assert_eq!(used as usize, resets::MAX_WAITING);
    assert!(!guest.driver.transport.is_quiet());
    // Buffers let everything go on.
    let total = u32::from(guest.driver.rings[TX].avail_idx);
    let mut refused = Vec::new();
    guest.give_buffers(64);
    while refused.len() < total as usize {
        let packets = guest.packets();
        assert!(!packets.is_empty(), "stuck at {refused:?} of {total}");
        refused.extend(
            packets
                .iter()
                .map(|(header, _)| (header.op, header.dst_port)),
        );
    }
    let expected: Vec<_> = (0..total).map(|port| (OP_RST, port)).collect();
    assert_eq!(refused, expected);
    assert!(guest.driver.transport.is_quiet());
}

#[test]
fn a_connection_that_nobody_hears_of_is_refused_once() {
    let mut guest = Guest::new();
    for _ in 0..300 {
        guest.send(OP_REQUEST, 0, &[]);
    }
    assert_eq!(guest.driver.transport.device().resets.len(), 1);
    guest.give_buffers(8);
    assert_eq!(guest.one_packet().0.op, OP_RST);
}

/// What a hostile guest or a busy host does next. Ports and connections are chosen
/// from a few, so that they meet.
#[derive(Debug, Clone)]
enum Act {
    Packet {
        op: u16,
        flags: u32,
        len: u32,
        ports: (u32, u32),
        buf_alloc: u32,
        fwd_cnt: Option<u32>,
        real: u16,
    },
    Garbage(Vec<u8>),
    Buffer(u32),
    Host(usize, Vec<u8>),
    HostReads(usize),
    HostEnds(usize, u8),
    Attach,
    Hub(u8),
    LoseHub,
    SaveRestore,
    DriverReset,
}

fn act() -> impl Strategy<Value = Act> {
    let op =
        prop_oneof![3 => Just(OP_REQUEST), 2 => Just(OP_RESPONSE), 4 => Just(OP_RW), 4 => 0_u16..9];
    let ports = (0_u32..3, 0_u32..4);
    let fwd_cnt = proptest::option::weighted(0.1, any::<u32>());
    let packet = (
        op,
        0_u32..5,
        0_u32..5000,
        ports,
        any::<u32>(),
        fwd_cnt,
        0_u16..5000,
    );
    let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most);
    prop_oneof![
        8 => packet.prop_map(|(op, flags, len, ports, buf_alloc, fwd_cnt, real)| {
            // Packets that are what they say are the ones that get far.
            let len = if flags == 0 { real.into() } else { len };
            Act::Packet { op, flags, len, ports, buf_alloc, fwd_cnt, real }
        }),
        1 => bytes(100).prop_map(Act::Garbage),
        4 => (0_u32..5000).prop_map(Act::Buffer),
        3 => (0_usize..4, bytes(9000)).prop_map(|(nth, bytes)| Act::Host(nth, bytes)),
        3 => (0_usize..4).prop_map(Act::HostReads),
        2 => (0_usize..4, 0_u8..3).prop_map(|(nth, how)| Act::HostEnds(nth, how)),
        1 => Just(Act::Attach),
        6 => (0_u8..6).prop_map(Act::Hub),
        1 => Just(Act::LoseHub),
        1 => Just(Act::SaveRestore),
        1 => Just(Act::DriverReset),
    ]
}

/// A guest, its hosts and an agent, none of whom keeps to anything.
struct Chaos {
    guest: Guest,
    agent: Agent,
    hosts: Vec<UnixStream>,
    asked: u64,
}

impl Chaos {
    fn new() -> Self {
        let (mut guest, host) = Guest::connected();
        Self {
            agent: guest.attach_hub(),
            guest,
            hosts: vec![host],
            asked: 0,
        }
    }

    fn host(&mut self, nth: usize) -> Option<&mut UnixStream> {
        let index = nth % self.hosts.len().max(1);
        self.hosts.get_mut(index)
    }

    fn act(&mut self, act: Act) {
        let guest = &mut self.guest;
        match act {
            Act::Packet {
                op,
                flags,
                len,
                ports,
                buf_alloc,
                fwd_cnt,
                real,
            } => {
                let key = [CHANNEL_PORT, 5, 6, hosts::FIRST_CALL_PORT][ports.1 as usize];
                let header = Header {
                    src_port: GUEST_PORT + ports.0,
                    dst_port: key,
                    buf_alloc,
                    fwd_cnt: fwd_cnt.unwrap_or(0),
                    len,
                    ..Guest::header(op, flags, 0)
                };
                guest.send_raw(&header, &vec![7; real.into()]);
            }
            Act::Garbage(bytes) => {
                guest.driver.put(BUFFERS, &bytes);
                guest
                    .driver
                    .offer(TX, &[readable(BUFFERS, bytes.len() as u32)]);
                let _ = guest.driver.notify(TX);
            }
            Act::Buffer(len) => {
                guest.driver.offer(RX, &[writable(RX_BUFFERS, len)]);
                let _ = guest.driver.notify(RX);
            }
            Act::Host(nth, bytes) => {
                let _ = self.host(nth).map(|host| host.write(&bytes));
            }
            Act::HostReads(nth) => {
                let _ = self.host(nth).map(|host| host.read(&mut [0; 9000]));
            }
            Act::HostEnds(nth, 2) if !self.hosts.is_empty() => {
                self.hosts.swap_remove(nth % self.hosts.len());
            }
            Act::HostEnds(nth, how) => {
                let how = [Shutdown::Read, Shutdown::Write][usize::from(how % 2)];
                let _ = self.host(nth).map(|host| host.shutdown(how));
            }
            Act::Attach => {
                let host = guest.attach();
                self.hosts.push(host);
            }
            Act::Hub(what) => self.hub(what),
            Act::LoseHub => self.agent = guest.attach_hub(),
            Act::SaveRestore => {
                if guest.driver.transport.is_quiet() {
                    let state = guest.driver.transport.save();
                    let restored = guest.driver.transport.restore(&state, &guest.driver.ram);
                    assert_eq!(restored, Ok(()));
                    assert_eq!(guest.driver.transport.save(), state);
                    self.agent = guest.attach_hub();
                }
            }
            Act::DriverReset => guest.driver.initialise(COMMON_FEATURES),
        }
    }

    fn hub(&mut self, what: u8) {
        let mut send = |command: HubCommand| {
            let (ours, host) = stream();
            let brings = command.brings_stream();
            if brings {
                self.hosts.push(host);
            }
            let stream = brings.then_some(ours.as_fd());
            // The hub may be gone, or full.
            let _ = send_command(&self.agent.hub, &command, stream);
        };
        match what {
            0 => send(HubCommand::Connect {
                id: 1,
                guest_port: GUEST_PORT,
            }),
            1 => send(HubCommand::Accept { id: self.asked }),
            2 => send(HubCommand::Refuse { id: self.asked }),
            3 => {
                let _ = rustix::io::write(&self.agent.hub, &[0xff; 9]);
            }
            _ => {
                if let Ok(HubRequest::Connect { id, .. }) = receive_request(&self.agent.hub) {
                    self.asked = id;
                    send(HubCommand::Accept { id });
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_a_guest_does_panics_or_grows(acts in proptest::collection::vec(act(), 1..120)) {
        let mut chaos = Chaos::new();
        for act in acts {
            chaos.act(act);
            // Asserts what must hold at any time.
            chaos.guest.settle();
            let device = chaos.guest.driver.transport.device();
            prop_assert!(device.resets.len() <= state::MAX_RESETS);
        }
        // And whatever happened, a reset of the driver leaves nothing.
        chaos.guest.driver.initialise(COMMON_FEATURES);
        prop_assert_eq!(chaos.guest.driver.transport.device().table.len(), 0);
        chaos.guest.settle();
    }
}
