//! Tests of the vsock device: a guest made of rings on one side, real sockets on
//! the other.

#![allow(
    clippy::cast_possible_truncation,
    unused_must_use,
    reason = "tests choose their own numbers, and look at effects where they matter"
)]

mod hostile;
mod restore;
mod streams;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use snapback_proto::{CHANNEL_PORT, GUEST_CID};

use super::packet::*;
use super::*;
use crate::poll::{HostFd, HostPoll, Interest};
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
    poll: HostPoll,
    next_rx: u64,
    taken: u32,
}

impl Guest {
    fn new() -> Self {
        let poll = HostPoll::new().unwrap();
        let driver = Driver::live_with(Vsock::new(poll.device(0)), COMMON_FEATURES);
        Self {
            driver,
            poll,
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
        let ready = self.poll.ready().unwrap();
        self.driver.transport.host_ready(&ready, &self.driver.ram)
    }

    /// What is waited for on the only host end.
    fn interest(&self) -> Option<(bool, bool)> {
        let device = self.driver.transport.device();
        let host = device.connections.values().find_map(|c| c.host.as_ref());
        let interest = host.map(HostFd::interest);
        interest
            .filter(|interest| *interest != Interest::NONE)
            .map(|interest| (interest.readable, interest.writable))
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
