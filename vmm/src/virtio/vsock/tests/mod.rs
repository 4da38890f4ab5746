//! Tests of the vsock device: a guest made of rings on one side, real sockets on
//! the other.

#![allow(
    clippy::cast_possible_truncation,
    unused_must_use,
    reason = "tests choose their own numbers, and look at effects where they matter"
)]

mod ends;
mod hostile;
mod hub;
mod many;
mod orders;
mod restore;
mod streams;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use snapback_proto::hub::{HubCommand, HubRequest, receive_request, send_command};
use snapback_proto::{CHANNEL_PORT, GUEST_CID, PacketError};

use super::connection::Connection;
use super::packet::*;
use super::*;
use crate::poll::{HostFd, HostPoll, Interest};
use crate::virtio::testing::{
    BUFFERS, Driver, RAM_SIZE, assert_survives_hostile_rings, readable, writable,
};
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
        let host = device.table.iter().find_map(|(_, c)| c.host.as_ref());
        let interest = host.map(HostFd::interest);
        interest
            .filter(|interest| *interest != Interest::NONE)
            .map(|interest| (interest.readable, interest.writable))
    }

    /// Puts the device's own state back; the queues stay where the guest has them.
    fn put_back(&mut self, device: &VsockV1) {
        let state = crate::virtio::transport::VirtioV1 {
            device: device.clone(),
            ..self.driver.transport.save()
        };
        self.driver
            .transport
            .restore(&state, &self.driver.ram)
            .unwrap();
        assert_eq!(self.driver.transport.save(), state);
        assert!(self.driver.transport.is_quiet());
    }

    /// A restored guest: its channel is open and has no host end.
    fn restored() -> Self {
        let (mut guest, _host) = Self::connected();
        let state = guest.save();
        guest.put_back(&state);
        guest
    }

    /// The only connection, if there is one.
    fn only(&self) -> Option<&Connection> {
        let table = &self.driver.transport.device().table;
        assert!(table.len() <= 1);
        table.iter().next().map(|(_, connection)| connection)
    }

    /// Lets the device work until nothing is ready and nothing is left over.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let mut signals = self.host_ready();
            while signals.more_work {
                signals = self.driver.transport.continue_work(&self.driver.ram);
            }
            let device = self.driver.transport.device();
            device.table.assert_sound();
            let resets = &device.resets;
            assert!(device.table.iter().all(|(key, _)| !resets.contains(key)));
            assert!(
                device
                    .hub
                    .as_ref()
                    .is_none_or(|h| h.waiting() <= 3 * MAX_OPENING)
            );
            if self.poll.ready().unwrap().is_empty() {
                return;
            }
        }
        panic!("something is ready for ever");
    }

    /// Gives the guest a hub; the agent's end.
    fn attach_hub(&mut self) -> Agent {
        let kind = SocketType::SEQPACKET;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, hub) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        self.driver.transport.device_mut().attach_hub(ours).unwrap();
        Agent { hub, asked: 0 }
    }

    /// A packet of the connection between these ports.
    fn say(&mut self, guest_port: u32, host_port: u32, op: u16, flags: u32, payload: &[u8]) {
        let header = Header {
            src_port: guest_port,
            dst_port: host_port,
            ..Self::header(op, flags, payload.len())
        };
        self.send_raw(&header, payload);
    }

    fn save(&self) -> VsockV1 {
        assert!(self.driver.transport.is_quiet());
        self.driver.transport.device().save()
    }
}

/// The agent's end of a hub.
struct Agent {
    hub: OwnedFd,
    asked: u64,
}

impl Agent {
    /// What the VMM says, if it says anything.
    fn hears(&self) -> Option<HubRequest> {
        match receive_request(&self.hub) {
            Ok(request) => Some(request),
            Err(PacketError::Io(error)) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn says(&self, command: HubCommand, stream: Option<&OwnedFd>) {
        send_command(&self.hub, &command, stream.map(AsFd::as_fd)).unwrap();
    }

    /// Takes what the guest asked for; the host's end of it.
    fn accepts(&self) -> UnixStream {
        let Some(HubRequest::Connect { id, .. }) = self.hears() else {
            panic!("nothing was asked for");
        };
        let (ours, host) = stream();
        self.says(HubCommand::Accept { id }, Some(&ours));
        host
    }

    /// Asks for a connection to the guest; its number, and the host's end of it.
    fn calls(&mut self, guest_port: u32) -> (u64, UnixStream) {
        self.asked += 1;
        let (ours, host) = stream();
        let id = self.asked;
        self.says(HubCommand::Connect { id, guest_port }, Some(&ours));
        (id, host)
    }

    fn is_alone(&self) -> bool {
        matches!(receive_request(&self.hub), Err(PacketError::Closed))
    }
}

fn stream() -> (OwnedFd, UnixStream) {
    let (ours, host) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    (ours.into(), host)
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 7 + at / 253 + seed) as u8)
        .collect()
}

fn is_closed(host: &mut UnixStream) -> bool {
    matches!(host.read(&mut [0]), Ok(0))
}
