//! Connections that the hub brings, in both directions.

use super::*;

const PORT: u32 = 8080;

/// A guest with a channel and a hub.
fn with_hub() -> (Guest, Agent, UnixStream) {
    let (mut guest, channel) = Guest::connected();
    let agent = guest.attach_hub();
    guest.settle();
    (guest, agent, channel)
}

#[test]
fn a_connection_of_the_guest_is_asked_for_and_accepted() {
    let (mut guest, agent, _channel) = with_hub();
    guest.say(9, PORT, OP_REQUEST, 0, &[]);
    assert_eq!(guest.packets(), [], "not before the host has answered");
    let Some(HubRequest::Connect {
        id,
        guest_port: 9,
        host_port: PORT,
    }) = agent.hears()
    else {
        panic!("the hub was not asked");
    };
    let (ours, mut host) = stream();
    host.write_all(b"welcome").unwrap();
    agent.says(HubCommand::Accept { id }, Some(&ours));
    drop(ours);
    guest.settle();
    let packets = guest.packets();
    let ops: Vec<_> = packets.iter().map(|(header, _)| header.op).collect();
    assert_eq!(ops, [OP_RESPONSE, OP_RW]);
    assert_eq!(
        (packets[0].0.src_port, packets[0].0.dst_port),
        (PORT, 9),
        "{packets:?}"
    );
    assert_eq!(packets[1].1, b"welcome");
    guest.say(9, PORT, OP_RW, 0, b"thanks");
    let mut got = [0; 6];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"thanks");
    // The answer was to this question: a second one is to none.
    let (again, mut other) = stream();
    agent.says(HubCommand::Accept { id }, Some(&again));
    drop(again);
    agent.says(HubCommand::Refuse { id }, None);
    guest.settle();
    assert!(is_closed(&mut other));
    assert_eq!(guest.packets(), []);
}

#[test]
fn a_connection_of_the_guest_is_refused() {
    let (mut guest, agent, _channel) = with_hub();
    guest.say(9, PORT, OP_REQUEST, 0, &[]);
    let Some(HubRequest::Connect { id, .. }) = agent.hears() else {
        panic!("the hub was not asked");
    };
    agent.says(HubCommand::Refuse { id }, None);
    guest.settle();
    let (answer, _) = guest.one_packet();
    assert_eq!(
        (answer.op, answer.src_port, answer.dst_port),
        (OP_RST, PORT, 9)
    );
    // The port can be used again.
    guest.say(9, PORT, OP_REQUEST, 0, &[]);
    agent.accepts();
    guest.settle();
    assert_eq!(guest.packets()[0].0.op, OP_RESPONSE);
}

#[test]
fn the_hub_is_not_asked_for_the_channel() {
    let (mut guest, agent, mut channel) = with_hub();
    guest.say(9, CHANNEL_PORT, OP_REQUEST, 0, &[]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    assert_eq!(agent.hears(), None);
    guest.send(OP_RW, 0, b"alive");
    channel.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn a_connection_of_the_host_is_taken() {
    let (mut guest, mut agent, _channel) = with_hub();
    let (id, mut host) = agent.calls(22);
    host.write_all(b"early").unwrap();
    guest.settle();
    let (request, _) = guest.one_packet();
    let from = request.src_port;
    assert_eq!(
        (request.op, from, request.dst_port, request.buf_alloc),
        (OP_REQUEST, hosts::FIRST_CALL_PORT, 22, BUF_ALLOC)
    );
    assert_eq!(agent.hears(), None);
    guest.say(22, from, OP_RESPONSE, 0, &[]);
    assert_eq!(agent.hears(), Some(HubRequest::Connected { id }));
    guest.settle();
    assert_eq!(guest.one_packet().1, b"early");
    guest.say(22, from, OP_RW, 0, b"hello");
    let mut got = [0; 5];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    guest.say(22, from, OP_SHUTDOWN, SHUTDOWN_BOTH, &[]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    assert!(is_closed(&mut host));
    assert_eq!(agent.hears(), None);
}

#[test]
fn a_connection_of_the_host_is_refused() {
    let (mut guest, mut agent, _channel) = with_hub();
    // By a reset, and by anything else than an answer.
    for op in [OP_RST, OP_REQUEST, OP_RW, OP_SHUTDOWN, OP_CREDIT_REQUEST] {
        let (id, mut host) = agent.calls(22);
        guest.settle();
        let (request, _) = guest.one_packet();
        guest.say(22, request.src_port, op, 0, &[]);
        guest.settle();
        assert_eq!(agent.hears(), Some(HubRequest::Refused { id }));
        assert!(is_closed(&mut host));
        let answers: Vec<_> = guest
            .packets()
            .iter()
            .map(|(header, _)| header.op)
            .collect();
        let expected: &[u16] = if op == OP_RST { &[] } else { &[OP_RST] };
        assert_eq!(answers, expected, "{op}");
    }
}

#[test]
fn ports_of_the_host_that_are_taken_are_passed_over() {
    let (mut guest, mut agent, _channel) = with_hub();
    // The guest has a connection that looks like the host's next one.
    guest.say(22, hosts::FIRST_CALL_PORT, OP_REQUEST, 0, &[]);
    let mut first = agent.accepts();
    guest.settle();
    guest.packets();
    let (_, _second) = agent.calls(22);
    guest.settle();
    let (request, _) = guest.one_packet();
    assert_eq!(request.src_port, hosts::FIRST_CALL_PORT + 1);
    guest.say(22, hosts::FIRST_CALL_PORT, OP_RW, 0, b"mine");
    first.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn without_a_hub_there_are_no_other_connections() {
    let (mut guest, _channel) = Guest::connected();
    guest.say(9, PORT, OP_REQUEST, 0, &[]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
}

#[test]
fn a_hub_that_is_closed_takes_what_was_not_answered_with_it() {
    let breaks: [fn(&Agent); 3] = [
        |_| (),
        |agent| assert_eq!(rustix::io::write(&agent.hub, &[0xff; 8]), Ok(8)),
        // An answer that should have brought a stream.
        |agent| assert_eq!(rustix::io::write(&agent.hub, &[0, 1]), Ok(2)),
    ];
    for (nth, broken) in breaks.into_iter().enumerate() {
        let (mut guest, mut agent, mut channel) = with_hub();
        guest.say(9, PORT, OP_REQUEST, 0, &[]);
        let mut open = agent.accepts();
        guest.settle();
        guest.say(10, PORT, OP_REQUEST, 0, &[]);
        let (_, mut call) = agent.calls(22);
        guest.settle();
        guest.packets();
        broken(&agent);
        if nth == 0 {
            drop(agent);
        }
        guest.settle();
        let mut reset: Vec<_> = guest
            .packets()
            .iter()
            .map(|(header, _)| (header.op, header.dst_port))
            .collect();
        reset.sort_unstable();
        assert_eq!(reset, [(OP_RST, 10), (OP_RST, 22)]);
        assert!(is_closed(&mut call));
        guest.say(11, PORT, OP_REQUEST, 0, &[]);
        assert_eq!(guest.one_packet().0.op, OP_RST);
        // What was there is still there.
        guest.say(9, PORT, OP_RW, 0, b"open");
        open.read_exact(&mut [0; 4]).unwrap();
        guest.send(OP_RW, 0, b"open");
        channel.read_exact(&mut [0; 4]).unwrap();
    }
}

#[test]
fn a_guest_that_gives_up_is_not_connected_later() {
    let (mut guest, agent, _channel) = with_hub();
    guest.say(9, PORT, OP_REQUEST, 0, &[]);
    guest.say(9, PORT, OP_RST, 0, &[]);
    let mut host = agent.accepts();
    guest.settle();
    assert_eq!(guest.packets(), []);
    assert!(is_closed(&mut host));
}

#[test]
fn a_driver_that_starts_anew_has_refused_what_it_was_asked() {
    let (mut guest, mut agent, _channel) = with_hub();
    let (id, mut host) = agent.calls(22);
    guest.say(9, PORT, OP_REQUEST, 0, &[]);
    guest.settle();
    guest.driver.write(0x70, 0);
    assert!(matches!(agent.hears(), Some(HubRequest::Connect { .. })));
    assert_eq!(agent.hears(), Some(HubRequest::Refused { id }));
    assert!(is_closed(&mut host));
    // The hub stays: it belongs to the lease.
    guest.driver.rings[RX] = crate::virtio::testing::Ring::new(0, 128);
    guest.driver.rings[TX] = crate::virtio::testing::Ring::new(1, 128);
    for ring in 0..2_u64 {
        guest.driver.put(0x10000 * (ring + 1) + 0x4000, &[0; 1024]);
        guest.driver.put(0x10000 * (ring + 1) + 0x8000, &[0; 2048]);
    }
    guest.driver.initialise(COMMON_FEATURES);
    guest.next_rx = 0;
    guest.give_buffers(8);
    guest.say(9, PORT, OP_REQUEST, 0, &[]);
    agent.accepts();
    guest.settle();
    assert_eq!(guest.packets()[0].0.op, OP_RESPONSE);
}
