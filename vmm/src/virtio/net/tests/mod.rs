//! Tests of the net device: a driver made of rings on one side, and a socket that
//! keeps frames apart in the place of the tap.

#![allow(
    clippy::cast_possible_truncation,
    unused_must_use,
    reason = "tests choose their own numbers, and look at effects where they matter"
)]

mod hostile;
mod receive;
mod send;

use std::cell::Cell;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::*;
use crate::poll::{HostPoll, Interest};
use crate::sys::tap::Offload;
use crate::virtio::testing::{
    BUFFERS, Desc, Driver, RAM_SIZE, assert_survives_hostile_rings, readable, writable,
};
use crate::virtio::transport::{MmioDevice, Signals, VirtioRestoreError};
use crate::virtio::{COMMON_FEATURES, DeviceRestoreError, F_EVENT_IDX};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const CHECKSUM: u64 = 1 << 1;
const TSO4: u64 = 1 << 7;
const MERGEABLE: u64 = 1 << 15;

thread_local! {
    static OFFLOAD: Cell<(Offload, u32)> = Cell::default();
}

/// The host's end of a link, its guest's driver, and who waits for whom.
struct Link {
    driver: Driver<Net>,
    host: OwnedFd,
    poll: HostPoll,
}

/// A device, the host's end of its link, and who waits for whom.
fn net() -> (Net, OwnedFd, HostPoll) {
    let (host, tap) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .unwrap();
    let poll = HostPoll::new().unwrap();
    OFFLOAD.set((Offload::default(), 0));
    let note = |_: std::os::fd::BorrowedFd<'_>, offload| {
        OFFLOAD.set((offload, OFFLOAD.get().1 + 1));
        Ok(())
    };
    let net = Net::on(tap, MAC, &poll.device(1), note).unwrap();
    (net, host, poll)
}

fn cold() -> Link {
    let (net, host, poll) = net();
    Link {
        driver: Driver::cold(net),
        host,
        poll,
    }
}

/// A link whose driver accepted `features` beside the common ones.
fn link(features: u64) -> Link {
    let mut link = cold();
    let common = COMMON_FEATURES & !F_EVENT_IDX;
    link.driver.initialise(common | features);
    link
}

/// A frame with its header; the byte says which one it is.
fn frame(len: usize, byte: u8) -> Vec<u8> {
    let mut frame = vec![byte; len];
    frame[..HEADER as usize].fill(0);
    frame
}

impl Link {
    /// A frame arrives from the network.
    fn arrive(&self, frame: &[u8]) {
        let sent = rustix::net::send(&self.host, frame, SendFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }

    /// What the guest sent, if anything.
    fn sent(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 17];
        let (_, len) =
            rustix::net::recv(&self.host, buffer.as_mut_slice(), RecvFlags::empty()).ok()?;
        buffer.truncate(len);
        Some(buffer)
    }

    /// Does what the supervisor does when something is ready.
    fn serve(&mut self) -> Signals {
        let ready = self.poll.ready().unwrap();
        if ready.is_empty() {
            return Signals::default();
        }
        self.driver.transport.host_ready(&ready, &self.driver.ram)
    }

    fn interest(&self) -> Interest {
        self.driver.transport.device().tap.interest()
    }

    /// Offers a buffer for frames of `len` bytes, the `nth` of its kind.
    fn offer_rx(&mut self, nth: u64, len: u32) -> u16 {
        self.driver.offer(RX, &[writable(place(nth), len)])
    }
}

/// Where the `nth` buffer of at most 64 KiB lies.
fn place(nth: u64) -> u64 {
    BUFFERS + 0x1_8000 * nth
}

#[test]
fn the_configuration_has_address_and_link() {
    let driver = cold().driver;
    assert_eq!(driver.read(0x008), 1);
    assert_eq!(driver.read(0x100), u32::from_le_bytes([2, 0, 0, 0]));
    assert_eq!(driver.read(0x104), u32::from_le_bytes([0, 7, 1, 0]));
    assert_eq!(driver.read(0x108), 0);
}

#[test]
fn the_tap_is_told_what_the_driver_takes_over() {
    let all = Offload {
        checksum: true,
        tso4: true,
    };
    for (features, expected) in [
        (0, Offload::default()),
        (CHECKSUM | TSO4, all),
        (CHECKSUM, Offload { tso4: false, ..all }),
    ] {
        let mut link = link(features);
        assert_eq!(OFFLOAD.get().0, expected, "{features:#x}");
        // A driver that takes over nothing follows.
        link.driver.initialise(COMMON_FEATURES);
        assert_eq!(OFFLOAD.get().0, Offload::default(), "{features:#x}");
    }
}

#[test]
fn a_driver_gets_no_frame_that_came_before_it_was_live() {
    let mut link = cold();
    link.arrive(&frame(100, 1));
    link.driver.initialise(COMMON_FEATURES & !F_EVENT_IDX);
    link.offer_rx(0, 2048);
    link.arrive(&frame(100, 2));
    assert!(link.serve().interrupt);
    assert_eq!(link.driver.get(place(0) + 12, 1), [2]);
}

#[test]
fn a_reset_leaves_no_frame_and_no_work() {
    let mut link = link(MERGEABLE);
    let ram = link.driver.ram.clone();
    link.offer_rx(0, 2048);
    let state = link.driver.transport.save();
    link.arrive(&frame(100, 1));
    link.serve();
    for _ in 0..300 {
        // The tap may be full at the end: that goes, too.
        let data = [readable(place(1), 60_000)];
        link.driver.offer(TX, &data);
    }
    link.driver.notify(TX);
    link.arrive(&frame(100, 2));
    link.driver.transport.restore(&state, &ram).unwrap();
    assert_eq!(link.driver.transport.save(), state);
    assert!(link.driver.transport.is_quiet());
    assert_eq!(link.interest(), Interest::READABLE);
    assert!(!link.serve().interrupt, "nothing is there");
    assert_eq!(OFFLOAD.get().1, 0, "the tap was told nothing new");
    // What comes while the machine stands still is dropped when it runs.
    link.arrive(&frame(100, 3));
    link.driver.transport.device().drop_queued().unwrap();
    assert!(!link.serve().interrupt);
}

#[test]
fn state_restores() {
    let mut link = link(0);
    let ram = link.driver.ram.clone();
    link.offer_rx(0, 2048);
    link.driver.offer(TX, &[readable(place(1), 100)]);
    let (poll, host) = (link.poll, link.host);
    crate::bus::testing::assert_restores(
        &mut link.driver.transport,
        |transport| transport.save(),
        |transport| {
            rustix::net::send(&host, &frame(100, 1), SendFlags::empty()).unwrap();
            transport.notify(TX, &ram);
            transport.host_ready(&poll.ready().unwrap(), &ram);
            transport.write(0x70, &0_u32.to_le_bytes(), &ram);
        },
        |transport, state| transport.restore(state, &ram).unwrap(),
    );
    let mut state = link.driver.transport.save();
    state.device.mac[5] = 8;
    let wrong = DeviceRestoreError::Address {
        snapshot: state.device.mac,
        machine: MAC,
    };
    assert_eq!(
        link.driver.transport.restore(&state, &ram),
        Err(VirtioRestoreError::Device(wrong))
    );
}
