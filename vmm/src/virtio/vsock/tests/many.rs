//! Many connections: bounds, turns, and what is left of those that went.

use super::*;

/// A guest with a hub, many buffers, and `count` connections to port 80.
fn crowd(count: u32) -> (Guest, Agent, UnixStream, Vec<UnixStream>) {
    let (mut guest, channel) = Guest::connected();
    let agent = guest.attach_hub();
    let hosts = (1..=count).map(|port| {
        guest.say(port, 80, OP_REQUEST, 0, &[]);
        let host = agent.accepts();
        guest.settle();
        let (answer, _) = guest.one_packet();
        assert_eq!((answer.op, answer.dst_port), (OP_RESPONSE, port));
        host
    });
    let hosts = hosts.collect();
    (guest, agent, channel, hosts)
}

#[test]
fn a_table_that_is_full_refuses_until_one_goes() {
    let others = MAX_CONNECTIONS as u32 - 1;
    let (mut guest, mut agent, mut channel, mut hosts) = crowd(others);
    let device = guest.driver.transport.device();
    assert_eq!(device.table.len(), MAX_CONNECTIONS);
    // Nothing is ready of all these, and all their promises fit the bound.
    let promised: u64 = device
        .table
        .iter()
        .map(|(_, connection)| u64::from(connection.credit.buf_alloc))
        .sum();
    assert!(promised <= 32 << 20, "{promised}");
    assert_eq!(guest.poll.ready().unwrap(), []);
    guest.say(5000, 80, OP_REQUEST, 0, &[]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    assert_eq!(agent.hears(), None);
    let (id, mut host) = agent.calls(22);
    guest.settle();
    assert_eq!(agent.hears(), Some(HubRequest::Refused { id }));
    assert!(is_closed(&mut host));
    guest.say(7, 80, OP_RST, 0, &[]);
    assert!(is_closed(&mut hosts[6]));
    guest.say(5000, 80, OP_REQUEST, 0, &[]);
    agent.accepts();
    guest.settle();
    assert_eq!(guest.packets()[0].0.op, OP_RESPONSE);
    // The channel and the last one still work.
    channel.write_all(b"channel").unwrap();
    hosts[others as usize - 1].write_all(b"last").unwrap();
    guest.settle();
    let mut got: Vec<_> = guest
        .packets()
        .into_iter()
        .map(|(_, bytes)| bytes)
        .collect();
    got.retain(|bytes| !bytes.is_empty());
    got.sort();
    assert_eq!(got, [b"channel".to_vec(), b"last".to_vec()]);
}

#[test]
fn thousands_of_connections_come_and_go_and_leave_nothing() {
    let (mut guest, mut agent, mut channel, _) = crowd(0);
    let before = guest.poll.users();
    for round in 0..3000_u32 {
        // Few ports, so that they are used again at once; every way to end.
        let port = 1 + round % 5;
        let (from, mut host) = if round % 2 == 0 {
            guest.say(port, 80, OP_REQUEST, 0, &[]);
            (80, agent.accepts())
        } else {
            let (_, host) = agent.calls(port);
            guest.settle();
            let from = guest.one_packet().0.src_port;
            guest.say(port, from, OP_RESPONSE, 0, &[]);
            assert!(matches!(agent.hears(), Some(HubRequest::Connected { .. })));
            (from, host)
        };
        guest.settle();
        guest.packets();
        guest.say(port, from, OP_RW, 0, &round.to_le_bytes());
        let mut got = [0; 4];
        host.read_exact(&mut got).unwrap();
        assert_eq!(u32::from_le_bytes(got), round);
        match round % 3 {
            0 => guest.say(port, from, OP_SHUTDOWN, SHUTDOWN_BOTH, &[]),
            1 => guest.say(port, from, OP_RST, 0, &[]),
            _ => {
                drop(host);
                guest.settle();
                guest.say(port, from, OP_SHUTDOWN, SHUTDOWN_BOTH, &[]);
            }
        }
        guest.packets();
        assert_eq!(guest.driver.transport.device().table.len(), 1, "{round}");
    }
    assert_eq!(guest.poll.users(), before, "each descriptor is one");
    assert!(guest.driver.transport.is_quiet());
    assert_eq!(guest.save().resets, []);
    channel.write_all(b"alive").unwrap();
    guest.settle();
    assert_eq!(guest.one_packet().1, b"alive");
}

#[test]
fn questions_without_answers_are_bounded() {
    let (mut guest, mut agent, _channel, _) = crowd(0);
    for port in 0..MAX_OPENING as u32 {
        guest.say(port, 80, OP_REQUEST, 0, &[]);
    }
    assert_eq!(guest.packets(), []);
    guest.say(999, 80, OP_REQUEST, 0, &[]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    let (_, mut call) = agent.calls(22);
    guest.settle();
    assert!(is_closed(&mut call));
    let asked = std::iter::from_fn(|| agent.hears()).count();
    assert_eq!(asked, MAX_OPENING + 1, "and one call refused");
}

#[test]
fn an_agent_that_does_not_listen_is_asked_no_more() {
    let (mut guest, agent, mut channel, _) = crowd(0);
    // The guest gives up at once each time: only what waits for the hub adds up.
    let mut refused = 0;
    for round in 0..5000 {
        guest.say(9, 80, OP_REQUEST, 0, &[]);
        guest.say(9, 80, OP_RST, 0, &[]);
        guest.settle();
        refused += guest.packets().len();
        if refused > 10 {
            assert!(round > MAX_OPENING);
            break;
        }
    }
    assert!(refused > 10, "{refused}");
    let waiting = guest
        .driver
        .transport
        .device()
        .hub
        .as_ref()
        .unwrap()
        .waiting();
    assert_eq!(waiting, MAX_OPENING);
    channel.write_all(b"alive").unwrap();
    guest.settle();
    assert_eq!(guest.one_packet().1, b"alive");
    // When it listens again, it hears everything in order and can be asked again.
    let mut last = 0;
    while let Some(HubRequest::Connect { id, .. }) = agent.hears() {
        assert!(id > last);
        last = id;
        guest.settle();
    }
    guest.say(10, 80, OP_REQUEST, 0, &[]);
    assert!(matches!(agent.hears(), Some(HubRequest::Connect { .. })));
}

#[test]
fn a_flood_of_payload_does_not_hold_up_the_others() {
    let (mut guest, _agent, mut channel, mut hosts) = crowd(3);
    for host in &mut hosts {
        while host.write(&[1; 4096]).is_ok() {}
    }
    channel.write_all(b"request").unwrap();
    // Of the first packets, each connection has one.
    guest.settle();
    let packets = guest.packets();
    let nth = packets.iter().position(|(_, bytes)| bytes == b"request");
    assert!(nth.is_some_and(|nth| nth < 8), "{nth:?}");
    for port in 1..=3 {
        let mut first = packets.iter().take(8);
        assert!(first.any(|(header, _)| header.dst_port == port), "{port}");
    }
}

#[test]
fn a_flood_of_refusals_does_not_hold_up_payload() {
    let (mut guest, _agent, mut channel, _) = crowd(0);
    let mut port = 100;
    while !guest.driver.transport.device().resets.is_full() {
        guest.say(port, 1, OP_RW, 0, b"nobody");
        port += 1;
    }
    channel.write_all(b"request").unwrap();
    let _ = guest.host_ready();
    let before = guest.packets().len();
    let after = guest.packets();
    let nth = after.iter().position(|(_, bytes)| bytes == b"request");
    assert!(before > 0 && nth.is_some_and(|nth| nth < 2), "{nth:?}");
    assert!(guest.driver.transport.device().resets.len() > 0);
}

#[test]
fn connections_move_their_bytes_side_by_side() {
    let (mut guest, _agent, _channel, mut hosts) = crowd(40);
    let out: Vec<_> = (0..hosts.len()).map(|nth| pattern(60_000, nth)).collect();
    let mut got = vec![Vec::new(); hosts.len()];
    for (host, bytes) in hosts.iter_mut().zip(&out) {
        host.write_all(bytes).unwrap();
    }
    for (nth, bytes) in out.iter().enumerate() {
        for chunk in bytes.chunks(7_000) {
            guest.say(nth as u32 + 1, 80, OP_RW, 0, chunk);
        }
    }
    for _ in 0..2000 {
        guest.settle();
        for (header, payload) in guest.packets() {
            if header.op == OP_RW {
                got[header.dst_port as usize - 1].extend(payload);
            }
        }
        if got.iter().all(|bytes| bytes.len() == 60_000) {
            break;
        }
    }
    assert!(got == out);
    for (host, bytes) in hosts.iter_mut().zip(&out) {
        let mut back = vec![0; bytes.len()];
        host.read_exact(&mut back).unwrap();
        assert!(back == *bytes);
    }
}
