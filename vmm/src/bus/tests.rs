//! Tests of the bus: who answers where, and the state of all devices together.

#![allow(
    clippy::cast_possible_truncation,
    unused_must_use,
    reason = "tests choose their own numbers, and look at effects where they matter"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress};

use super::testing::assert_restores;
use super::*;
use crate::poll::HostPoll;
use crate::virtio::testing::{BUFFERS, Ring, ram, readable, writable};

fn disk(sectors: u64) -> Block {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0x5a; sectors as usize * 512]).unwrap();
    Block::open(file).unwrap()
}

fn vsock() -> Vsock {
    Vsock::new(HostPoll::new().unwrap().device(Bus::VSOCK))
}

fn bus() -> Bus {
    Bus::new(Serial::mute(), vsock(), vec![disk(8), disk(16)]).unwrap()
}

fn read32(bus: &mut Bus, address: u64) -> u32 {
    let mut word = [0; 4];
    bus.mmio_read(address, &mut word);
    u32::from_le_bytes(word)
}

fn write32(bus: &mut Bus, address: u64, value: u32, ram: &GuestRam) -> Effects {
    bus.mmio_write(address, &value.to_le_bytes(), ram)
}

/// Initialises device `index` as a driver does.
fn initialise(bus: &mut Bus, index: usize, ram: &GuestRam) {
    let slot = bus.slots().nth(index).unwrap();
    let mut write = |register: u64, value: u32| {
        assert_eq!(
            write32(bus, slot.base + register, value, ram),
            Effects::NONE
        );
    };
    for (register, value) in [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
        write(register, value);
    }
    for queue in 0..slot.queues {
        let ring = ring(index, queue);
        for (register, value) in [
            (0x30, queue as u64),
            (0x38, 64),
            (0x80, ring.desc),
            (0x90, ring.avail),
            (0xa0, ring.used),
            (0x44, 1),
        ] {
            write(register, value as u32);
        }
    }
    write(0x70, 15);
}

fn ring(device: usize, queue: usize) -> Ring {
    Ring::new((device * 3 + queue) as u64, 64)
}

#[test]
fn devices_lie_where_the_layout_says() {
    let mut bus = bus();
    let slots: Vec<_> = bus.slots().collect();
    let expected = [
        (0xd000_0000, 5, 3, 19),
        (0xd000_1000, 6, 1, 2),
        (0xd000_2000, 7, 1, 2),
        (0xd000_3000, 8, 1, 4),
    ];
    assert_eq!(slots.len(), expected.len());
    for (slot, (base, gsi, queues, id)) in slots.iter().zip(expected) {
        assert_eq!((slot.base, slot.gsi, slot.queues), (base, gsi, queues));
        assert_eq!(read32(&mut bus, base), 0x7472_6976);
        assert_eq!(read32(&mut bus, base + 8), id);
    }
    assert_eq!(read32(&mut bus, 0xd000_1100), 8, "vda");
    assert_eq!(read32(&mut bus, 0xd000_2100), 16, "vdb");
}

#[test]
fn nobody_elsewhere() {
    let mut bus = bus();
    let ram = ram();
    for address in [0, 0xcfff_fffc, 0xd000_4000, 0xfee0_0000, u64::MAX - 3] {
        assert_eq!(read32(&mut bus, address), u32::MAX);
        assert_eq!(write32(&mut bus, address, 1, &ram), Effects::NONE);
    }
    for port in [0, 0x61, 0x3f7, 0x400, 0xcf8, u16::MAX] {
        let mut data = [0; 4];
        bus.pio_read(port, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(bus.pio_write(port, &data), Effects::NONE);
    }
    for (device, queue) in [(0, 3), (2, 1), (3, 1), (4, 0), (usize::MAX, usize::MAX)] {
        assert_eq!(bus.queue_notify(device, queue, &ram), Effects::NONE);
    }
}

#[test]
fn too_many_devices_are_refused() {
    let disks = |count| (0..count).map(|_| disk(1)).collect();
    assert!(Bus::new(Serial::mute(), vsock(), disks(14)).is_ok());
    let refused = Bus::new(Serial::mute(), vsock(), disks(15)).err();
    assert_eq!(refused, Some(TooManyDevices { devices: 17 }));
}

#[test]
fn ports_reach_their_devices() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let serial = Serial::new(writer.into()).unwrap();
    let mut bus = Bus::new(serial, vsock(), Vec::new()).unwrap();
    assert_eq!(bus.pio_write(0x3f8, b"log line"), Effects::NONE);
    let mut got = [0; 8];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"log line");
    assert!(bus.pio_write(0x3f9, &[2]).interrupts.contains(4));
    assert!(bus.pio_write(0x64, &[0xfe]) == Effects::end(Some(GuestEnd::Rebooted)));
    let mut status = [0xff];
    bus.pio_read(0x64, &mut status);
    assert_eq!(status, [0]);
}

#[test]
fn a_guest_ends_by_the_ports_of_its_tables() {
    let mut bus = bus();
    let mut ports = [0xff; 5];
    for (byte, port) in ports.iter_mut().zip([0x505, 0x600, 0x601, 0x602, 0x603]) {
        bus.pio_read(port, std::slice::from_mut(byte));
    }
    assert_eq!(ports, [1, 0, 0, 0, 0xff]);
    for (port, byte, end) in [
        (0x505, 1, Some(GuestEnd::Panicked)),
        (0x505, 2, None),
        (0x600, 0x34, Some(GuestEnd::PoweredOff)),
        (0x600, 0x14, None),
        (0x602, 1, Some(GuestEnd::Rebooted)),
        (0x602, 0, None),
        (0x603, 0xff, None),
    ] {
        assert_eq!(bus.pio_write(port, &[byte]), Effects::end(end), "{port:#x}");
    }
    // A string instruction: the worst of it counts.
    let all = Effects::end(Some(GuestEnd::Panicked));
    assert_eq!(bus.pio_write(0x505, &[0, 1, 0]), all);
}

#[test]
fn a_request_interrupts_on_its_own_line() {
    let (mut bus, ram) = (bus(), ram());
    initialise(&mut bus, 2, &ram);
    let mut ring = ring(2, 0);
    for by_write in [false, true] {
        ram.write_slice(&[0; 16], GuestAddress(BUFFERS)).unwrap();
        ring.offer(
            &ram,
            &[readable(BUFFERS, 16), writable(BUFFERS + 0x1000, 513)],
        );
        let effects = if by_write {
            write32(&mut bus, 0xd000_2050, 0, &ram)
        } else {
            bus.queue_notify(2, 0, &ram)
        };
        assert_eq!(
            effects,
            Effects {
                interrupts: Lines::one(7),
                ..Effects::NONE
            }
        );
        assert_eq!(ring.take_used(&ram).len(), 1);
        let byte: u8 = ram.read_obj(GuestAddress(BUFFERS + 0x1000)).unwrap();
        assert_eq!(byte, 0x5a);
    }
}

#[test]
fn the_channel_is_polled_when_the_guest_opened_it() {
    let (poll, ram) = (HostPoll::new().unwrap(), ram());
    let vsock = Vsock::new(poll.device(Bus::VSOCK));
    let mut bus = Bus::new(Serial::mute(), vsock, Vec::new()).unwrap();
    let (ours, mut host) = UnixStream::pair().unwrap();
    bus.attach_channel(ours.into()).unwrap();
    host.write_all(b"early").unwrap();
    assert_eq!(poll.ready().unwrap(), []);
    initialise(&mut bus, 0, &ram);
    let (mut rx, mut tx) = (ring(0, 0), ring(0, 1));
    for nth in 0..4 {
        rx.offer(&ram, &[writable(BUFFERS + 0x1_0000 * (nth + 1), 4096)]);
    }
    // OP_REQUEST from 3:7 to 2:1024, with room for 4096 bytes.
    let mut request = [3_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat();
    for word in [7_u32, 1024, 0, 1 | 1 << 16, 0, 4096, 0] {
        request.extend(word.to_le_bytes());
    }
    ram.write_slice(&request, GuestAddress(BUFFERS)).unwrap();
    tx.offer(&ram, &[readable(BUFFERS, 44)]);
    assert_eq!(bus.queue_notify(0, 1, &ram).interrupts, Lines::one(5));
    let lengths = |rx: &mut Ring| -> Vec<u32> {
        let used = rx.take_used(&ram);
        used.into_iter().map(|(_, len)| len).collect()
    };
    assert_eq!(lengths(&mut rx), [44, 44 + 5]);
    host.write_all(b"frame").unwrap();
    let ready = poll.ready().unwrap();
    assert_eq!(ready.len(), 1);
    assert_eq!(bus.host_ready(&ready, &ram).interrupts, Lines::one(5));
    assert_eq!(poll.ready().unwrap(), []);
    assert_eq!(bus.host_ready(&ready, &ram), Effects::NONE, "stale news");
    let elsewhere = Ready {
        device: 1,
        ..ready[0]
    };
    assert_eq!(bus.host_ready(&[elsewhere], &ram), Effects::NONE);
    assert_eq!(lengths(&mut rx), [44 + 5]);
    assert!(bus.is_quiet());
    assert_eq!(bus.save().unwrap().vsock.device.connections.len(), 1);
    bus.detach_channel();
    assert_eq!(poll.ready().unwrap(), []);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn state_restores() {
    let (mut bus, ram) = (bus(), ram());
    initialise(&mut bus, 1, &ram);
    let mut ring = ring(1, 0);
    assert_restores(
        &mut bus,
        |bus| bus.save().unwrap(),
        |bus| {
            let _ = bus.pio_write(0x3ff, &[9]);
            let _ = bus.pio_write(0x64, &[0x60]);
            initialise(bus, 2, &ram);
            ring.offer(
                &ram,
                &[readable(BUFFERS, 16), writable(BUFFERS + 0x1000, 513)],
            );
            let _ = bus.queue_notify(1, 0, &ram);
            initialise(bus, 3, &ram);
        },
        |bus, state| bus.restore(state, &ram).unwrap(),
    );
}

#[test]
fn errors_name_the_device() {
    let (mut bus, ram) = (bus(), ram());
    let good = bus.save().unwrap();
    let mut state = good.clone();
    state.disks[1].transport.interrupt_status = 8;
    let error = bus.restore(&state, &ram).unwrap_err();
    assert_eq!(error.to_string(), "state of disk 1");
    let mut state = good.clone();
    state.rng.transport.device_id = 2;
    let error = bus.restore(&state, &ram).unwrap_err();
    assert_eq!(error.to_string(), "state of the entropy device");
    let mut state = good.clone();
    state.disks.pop();
    let error = bus.restore(&state, &ram).unwrap_err();
    assert_eq!(
        error,
        RestoreError::Disks {
            snapshot: 1,
            machine: 2
        }
    );
    let mut state = good;
    state.serial.in_buffer = vec![0; 1000];
    assert!(matches!(
        bus.restore(&state, &ram),
        Err(RestoreError::Serial(_))
    ));
}

#[test]
fn effects_merge() {
    let mut effects = Effects::NONE;
    effects.merge(Effects {
        interrupts: Lines::one(5),
        ..Effects::NONE
    });
    effects.merge(Effects {
        interrupts: Lines::one(4),
        ended: Some(GuestEnd::Rebooted),
        more_work: true,
    });
    assert_eq!(effects.interrupts.iter().collect::<Vec<_>>(), [4, 5]);
    assert!(effects.more_work);
    effects.merge(Effects::end(Some(GuestEnd::PoweredOff)));
    assert_eq!(effects.ended, Some(GuestEnd::Rebooted));
    effects.merge(Effects::end(Some(GuestEnd::Panicked)));
    effects.merge(Effects::NONE);
    assert_eq!(effects.ended, Some(GuestEnd::Panicked));
    assert!(Lines::one(32).is_empty() && !Lines::one(4).contains(5));
}
