//! Connections between well-behaved ends: bytes and credit.

use super::*;

#[test]
fn the_header_is_the_librarys() {
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    let header = Header {
        flags: 3,
        fwd_cnt: 9,
        ..Guest::header(OP_SHUTDOWN, 0, 0)
    };
    let ram = crate::virtio::testing::ram();
    vm_memory::Bytes::write_slice(&ram, &header.encode(), vm_memory::GuestAddress(BUFFERS))
        .unwrap();
    let queue = MockSplitQueue::new(&ram, 4);
    let desc = RawDescriptor::from(Descriptor::new(BUFFERS, 44, 0, 0));
    let mut chain = queue.build_desc_chain(&[desc]).unwrap();
    let packet =
        virtio_vsock::packet::VsockPacket::from_tx_virtq_chain(&ram, &mut chain, 4096).unwrap();
    assert_eq!(
        (packet.src_cid(), packet.dst_cid()),
        (header.src_cid, header.dst_cid)
    );
    assert_eq!(
        (packet.src_port(), packet.dst_port()),
        (header.src_port, header.dst_port)
    );
    assert_eq!((packet.type_(), packet.op()), (header.kind, header.op));
    assert_eq!((packet.len(), packet.flags()), (header.len, header.flags));
    assert_eq!(
        (packet.buf_alloc(), packet.fwd_cnt()),
        (header.buf_alloc, header.fwd_cnt)
    );
    assert_eq!(Header::decode(&header.encode()), header);
}

#[test]
fn the_configuration_is_the_guests_cid() {
    let guest = Guest::new();
    assert_eq!(
        (guest.driver.read(0x100), guest.driver.read(0x104)),
        (GUEST_CID, 0)
    );
}

#[test]
fn bytes_go_both_ways_exactly() {
    let (mut guest, mut host) = Guest::connected();
    let mut got = vec![0; 3000];
    for round in 0..100 {
        let out = pattern(3000, round);
        guest.send(OP_RW, 0, &out);
        host.read_exact(&mut got).unwrap();
        assert_eq!(got, out);
        let back = pattern(10_000, round + 1);
        host.write_all(&back).unwrap();
        assert_eq!(guest.interest(), Some((true, false)));
        assert!(guest.host_ready().interrupt);
        let mut received = Vec::new();
        for (header, payload) in guest.packets() {
            assert_eq!(header.op, OP_RW);
            received.extend(payload);
        }
        assert_eq!(received, back);
        guest.send(OP_CREDIT_UPDATE, 0, &[]);
        for (header, _) in guest.packets() {
            assert_eq!(header.op, OP_CREDIT_UPDATE);
        }
    }
    assert!(!guest.driver.needs_reset());
}

#[test]
fn the_guests_room_is_never_exceeded() {
    let (mut guest, mut host) = Guest::connected();
    guest.give_buffers(64);
    let data = pattern(200_000, 3);
    host.write_all(&data[..GUEST_ROOM as usize + 5000]).unwrap();
    let _ = guest.host_ready();
    let mut packets = guest.packets();
    // Out of room: asked for more once, and waits.
    assert_eq!(packets.pop().unwrap().0.op, OP_CREDIT_REQUEST);
    let received: usize = packets.iter().map(|(_, payload)| payload.len()).sum();
    assert_eq!(received, GUEST_ROOM as usize);
    assert_eq!(guest.interest(), None);
    let _ = guest.host_ready();
    assert_eq!(guest.packets(), []);
    guest.send(OP_CREDIT_UPDATE, 0, &[]);
    let rest: Vec<u8> = guest
        .packets()
        .into_iter()
        .flat_map(|(_, payload)| payload)
        .collect();
    assert_eq!(rest, data[GUEST_ROOM as usize..GUEST_ROOM as usize + 5000]);
}

#[test]
fn without_buffers_the_host_waits() {
    let mut guest = Guest::new();
    let mut host = guest.attach();
    guest.give_buffers(1);
    guest.send(OP_REQUEST, 0, &[]);
    let used = guest.driver.take_used(RX);
    assert_eq!(used.len(), 1);
    host.write_all(b"hello").unwrap();
    let _ = guest.host_ready();
    assert_eq!(
        guest.interest(),
        None,
        "no buffer: do not spin on the socket"
    );
    guest.give_buffers(1);
    assert_eq!(guest.one_packet().1, b"hello");
}

#[test]
fn a_full_host_socket_is_buffered_up_to_the_bound() {
    let (mut guest, mut host) = Guest::connected();
    let chunk = pattern(32 << 10, 1);
    let mut sent: Vec<u8> = Vec::new();
    // The guest fills the socket's buffer and then ours.
    while guest.only().unwrap().pending.is_empty() {
        guest.send(OP_RW, 0, &chunk);
        sent.extend(&chunk);
        assert!(sent.len() < 8 << 20);
    }
    assert_eq!(guest.interest(), Some((true, true)));
    assert!(!guest.driver.transport.is_quiet());
    loop {
        let connection = guest.only().unwrap();
        assert!(connection.pending.len() <= BUF_ALLOC as usize);
        if connection.credit.receive_room() < chunk.len() as u32 {
            break;
        }
        guest.send(OP_RW, 0, &chunk);
        sent.extend(&chunk);
    }
    guest.packets();
    // Draining gives everything, in order, and the guest is told of the room.
    let mut got: Vec<u8> = Vec::new();
    let mut told = 0;
    while got.len() < sent.len() {
        let mut bytes = vec![0; 20_000];
        match host.read(&mut bytes) {
            Ok(read) => got.extend(&bytes[..read]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        let _ = guest.host_ready();
        told += guest
            .packets()
            .iter()
            .filter(|(h, _)| h.op == OP_CREDIT_UPDATE)
            .count();
    }
    assert_eq!(got, sent);
    assert!((1..10).contains(&told), "{told} credit updates");
    assert!(guest.driver.transport.is_quiet());
}

#[test]
fn credit_is_told_when_asked_for() {
    let (mut guest, _host) = Guest::connected();
    guest.send(OP_RW, 0, &[1; 100]);
    assert_eq!(guest.packets(), []);
    guest.send(OP_CREDIT_REQUEST, 0, &[]);
    let (answer, _) = guest.one_packet();
    assert_eq!(
        (answer.op, answer.buf_alloc, answer.fwd_cnt),
        (OP_CREDIT_UPDATE, BUF_ALLOC, 100)
    );
}

#[test]
fn what_arrives_is_dirty() {
    let (mut guest, mut host) = Guest::connected();
    let buffer = |nth: u64| RX_BUFFERS + nth * u64::from(RX_BUFFER);
    // Buffer 0 took the answer to the request.
    assert!(guest.driver.is_dirty(buffer(0)) && !guest.driver.is_dirty(buffer(1)));
    host.write_all(&[1; 5000]).unwrap();
    let _ = guest.host_ready();
    assert!(guest.driver.is_dirty(buffer(2)) && !guest.driver.is_dirty(buffer(3)));
}
