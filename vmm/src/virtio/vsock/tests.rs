//! Tests of the vsock device: a guest made of rings on one side, real sockets on
//! the other.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use snapback_proto::{CHANNEL_PORT, GUEST_CID};

use super::packet::*;
use super::*;
use crate::virtio::testing::{BUFFERS, Driver, RAM_SIZE, readable, writable};
use crate::virtio::transport::{MmioDevice, Signals, VirtioRestoreError};
use crate::virtio::{COMMON_FEATURES, DeviceRestoreError, VirtioDevice};

const GUEST_PORT: u32 = 0x4000_0001;
const RX_BUFFER: u32 = 4096;
const RX_BUFFERS: u64 = BUFFERS + (4 << 20);
/// Room that our guest offers.
const GUEST_ROOM: u32 = 64 << 10;

/// A guest with a vsock driver.
struct Guest {
    driver: Driver<Vsock>,
    next_rx: u64,
    taken: u32,
}

impl Guest {
    fn new() -> Self {
        let driver = Driver::live_with(Vsock::new(), COMMON_FEATURES);
        Self {
            driver,
            next_rx: 0,
            taken: 0,
        }
    }

    /// A guest with an open channel, and the host's end of it.
    fn connected() -> (Self, UnixStream) {
        let mut guest = Self::new();
        let host = guest.attach();
        guest.give_buffers(32);
        guest.send(OP_REQUEST, 0, &[]);
        let (answer, _) = guest.one_packet();
        assert_eq!((answer.op, answer.len), (OP_RESPONSE, 0));
        (guest, host)
    }

    fn attach(&mut self) -> UnixStream {
        let (ours, host) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        self.driver
            .transport
            .device_mut()
            .attach_channel(ours.into())
            .unwrap();
        host
    }

    fn header(op: u16, flags: u32, len: usize) -> Header {
        Header {
            src_cid: GUEST_CID.into(),
            dst_cid: HOST_CID,
            src_port: GUEST_PORT,
            dst_port: CHANNEL_PORT,
            len: len as u32,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: GUEST_ROOM,
            fwd_cnt: 0,
        }
    }

    fn send(&mut self, op: u16, flags: u32, payload: &[u8]) -> Signals {
        let header = Header {
            fwd_cnt: self.taken,
            ..Self::header(op, flags, payload.len())
        };
        self.send_raw(&header, payload)
    }

    /// Header and payload in buffers of their own, as a zero-copy sender has them.
    fn send_raw(&mut self, header: &Header, payload: &[u8]) -> Signals {
        self.driver.put(BUFFERS, &header.encode());
        self.driver.put(BUFFERS + 0x1000, payload);
        let (first, second) = (payload.len() / 3, payload.len() - payload.len() / 3);
        let chain = [
            readable(BUFFERS, 44),
            readable(BUFFERS + 0x1000, first as u32),
            readable(BUFFERS + 0x1000 + first as u64, second as u32),
        ];
        self.driver.offer(TX, &chain);
        let signals = self.driver.notify(TX);
        self.driver.take_used(TX);
        signals
    }

    fn give_buffers(&mut self, count: u64) {
        for _ in 0..count {
            let at = RX_BUFFERS + self.next_rx % 128 * u64::from(RX_BUFFER);
            self.next_rx += 1;
            self.driver.offer(RX, &[writable(at, RX_BUFFER)]);
        }
        let _ = self.driver.notify(RX);
    }

    /// What arrived since the last call. The buffers go back.
    fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let used = self.driver.take_used(RX);
        let mut packets = Vec::new();
        for (head, len) in &used {
            // One descriptor per buffer: the ring's index is the buffer's.
            let at = RX_BUFFERS + u64::from(*head) * u64::from(RX_BUFFER);
            let bytes: [u8; 44] = self.driver.get(at, 44).try_into().unwrap();
            let header = Header::decode(&bytes);
            assert_eq!(*len, header.len + 44);
            let payload = self.driver.get(at + 44, header.len as usize);
            self.taken = self.taken.wrapping_add(header.len);
            packets.push((header, payload));
        }
        self.give_buffers(used.len() as u64);
        packets
    }

    fn one_packet(&mut self) -> (Header, Vec<u8>) {
        let mut packets = self.packets();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    fn host_ready(&mut self) -> Signals {
        self.driver
            .transport
            .run(RX, &self.driver.ram, Vsock::host_ready)
    }

    fn interest(&self) -> Option<(bool, bool)> {
        let interest = self.driver.transport.device().poll_interest(true);
        interest.map(|interest| (interest.readable, interest.writable))
    }

    fn save(&self) -> VsockV1 {
        assert!(self.driver.transport.is_quiet());
        self.driver.transport.device().save()
    }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 7 + at / 253 + seed) as u8)
        .collect()
}

fn is_closed(host: &mut UnixStream) -> bool {
    matches!(host.read(&mut [0]), Ok(0))
}

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
    while guest
        .driver
        .transport
        .device()
        .connections
        .values()
        .all(|c| c.pending.is_empty())
    {
        guest.send(OP_RW, 0, &chunk);
        sent.extend(&chunk);
        assert!(sent.len() < 8 << 20);
    }
    assert_eq!(guest.interest(), Some((true, true)));
    assert!(!guest.driver.transport.is_quiet());
    loop {
        let connection = guest
            .driver
            .transport
            .device()
            .connections
            .values()
            .next()
            .unwrap();
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
}

#[test]
fn closing_in_both_directions_ends_the_connection() {
    let (mut guest, mut host) = Guest::connected();
    guest.send(OP_RW, 0, b"last words");
    guest.send(OP_SHUTDOWN, SHUTDOWN_BOTH, &[]);
    assert_eq!(guest.one_packet().0.op, OP_RST);
    let mut got = String::new();
    host.read_to_string(&mut got).unwrap();
    assert_eq!(got, "last words");
    assert_eq!(guest.save().connections, []);
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
    assert_eq!(guest.interest(), None);
    guest.send(OP_RW, 0, b"still here");
    let mut got = [0; 10];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still here");
    drop(host);
    guest.send(OP_RW, 0, b"?");
    assert_eq!(guest.one_packet().0.op, OP_RST);
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
fn a_reset_by_the_guest_gets_no_answer() {
    let (mut guest, mut host) = Guest::connected();
    guest.send(OP_RST, 0, &[]);
    assert_eq!(guest.packets(), []);
    assert!(is_closed(&mut host));
}

#[test]
fn a_device_reset_keeps_the_waiting_host_end() {
    let mut guest = Guest::new();
    let _host = guest.attach();
    guest.driver.initialise(COMMON_FEATURES);
    assert!(guest.driver.transport.device().waiting.is_some());
    let (mut guest, mut host) = Guest::connected();
    guest.driver.write(0x70, 0);
    assert!(is_closed(&mut host), "an open connection ends");
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

#[test]
fn the_channel_survives_a_restore() {
    let (mut guest, mut old) = Guest::connected();
    guest.send(OP_RW, 0, b"ready");
    old.read_exact(&mut [0; 5]).unwrap();
    let state = guest.driver.transport.save();
    // Another process: the same memory, a new device.
    let mut restored = Driver::cold(Vsock::new());
    restored.ram = guest.driver.ram.clone();
    restored.transport.restore(&state, &restored.ram).unwrap();
    assert_eq!(restored.transport.save(), state);
    std::mem::swap(&mut restored.rings, &mut guest.driver.rings);
    let mut guest = Guest {
        driver: restored,
        ..guest
    };
    assert_eq!(guest.interest(), None, "no host end yet");
    // What the guest says before it has one is kept for it.
    guest.send(OP_RW, 0, b"early");
    let mut host = guest.attach();
    let _ = guest.host_ready();
    let mut got = [0; 5];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"early");
    host.write_all(b"request").unwrap();
    let _ = guest.host_ready();
    assert_eq!(guest.one_packet().1, b"request");
    assert_eq!(
        old.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
}

#[test]
fn a_reset_puts_the_same_device_back() {
    let (mut guest, mut old) = Guest::connected();
    let ram = guest.driver.ram.clone();
    let mut lost = guest.attach();
    crate::bus::testing::assert_restores(
        &mut guest,
        |guest| guest.driver.transport.save(),
        |guest| {
            lost.write_all(b"request").unwrap();
            let _ = guest.host_ready();
            guest.packets();
            guest.send(OP_RW, 0, b"response");
            guest.driver.transport.device_mut().detach_channel();
        },
        |guest, state| guest.driver.transport.restore(state, &ram).unwrap(),
    );
    assert!(is_closed(&mut old), "replaced");
    lost.read_exact(&mut [0; 8]).unwrap();
    assert!(is_closed(&mut lost), "detached");
}

#[test]
fn detaching_tells_the_guest_nothing_and_drops_what_waits() {
    let (mut guest, mut host) = Guest::connected();
    guest.driver.transport.device_mut().detach_channel();
    assert!(is_closed(&mut host));
    assert_eq!(guest.packets(), []);
    guest.send(OP_RW, 0, b"for the old one");
    assert!(!guest.driver.transport.is_quiet());
    guest.driver.transport.device_mut().detach_channel();
    assert!(guest.driver.transport.is_quiet());
    let mut host = guest.attach();
    guest.send(OP_RW, 0, b"new");
    let mut got = [0; 10];
    assert_eq!(host.read(&mut got).unwrap(), 3);
    assert_eq!(guest.save().connections[0].rx_cnt, 18);
}

#[test]
fn other_connections_are_reset_one_by_one() {
    let (guest, _host) = Guest::connected();
    let mut state = guest.driver.transport.save();
    let channel = state.device.connections[0];
    for port in 1..=3 {
        state.device.connections.push(ConnectionV1 {
            host_port: CHANNEL_PORT + port,
            ..channel
        });
    }
    let mut guest = guest;
    guest
        .driver
        .transport
        .restore(&state, &guest.driver.ram)
        .unwrap();
    assert_eq!(
        guest.driver.transport.save(),
        state,
        "a verified reset sees them"
    );
    assert!(!guest.driver.transport.is_quiet());
    let _host = guest.attach();
    let _ = guest.host_ready();
    let reset: Vec<(u16, u32)> = guest
        .packets()
        .iter()
        .map(|(header, _)| (header.op, header.src_port))
        .collect();
    assert_eq!(reset, [1, 2, 3].map(|port| (OP_RST, CHANNEL_PORT + port)));
    assert_eq!(guest.save().connections, [channel]);
}

#[test]
fn impossible_tables_are_refused() {
    let (guest, _host) = Guest::connected();
    let good = guest.driver.transport.save();
    let channel = good.device.connections[0];
    let refusal = |connections: Vec<ConnectionV1>| {
        let mut state = good.clone();
        state.device = VsockV1 { connections };
        let mut device = crate::virtio::transport::Transport::new(Vsock::new());
        match device.restore(&state, &guest.driver.ram) {
            Err(VirtioRestoreError::Device(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let impossible = DeviceRestoreError::Connection {
        guest_port: channel.guest_port,
        host_port: channel.host_port,
    };
    assert_eq!(refusal(vec![channel, channel]), impossible, "twice");
    assert_eq!(
        refusal(vec![ConnectionV1 {
            guest_shutdown: 3,
            ..channel
        }]),
        impossible
    );
    assert_eq!(
        refusal(vec![ConnectionV1 {
            guest_shutdown: 4,
            ..channel
        }]),
        impossible
    );
    let told = channel.rx_cnt.wrapping_sub(BUF_ALLOC + 1);
    assert_eq!(
        refusal(vec![ConnectionV1 {
            told_fwd_cnt: told,
            ..channel
        }]),
        impossible
    );
    let second = ConnectionV1 {
        guest_port: channel.guest_port + 1,
        ..channel
    };
    assert!(matches!(
        refusal(vec![channel, second]),
        DeviceRestoreError::Connection { .. }
    ));
    let many = vec![channel; MAX_CONNECTIONS + 1];
    let connections = MAX_CONNECTIONS + 1;
    assert_eq!(
        refusal(many),
        DeviceRestoreError::TooManyConnections { connections }
    );
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
