//! Tests of the bus: who answers where, and the state of all devices together.

#![allow(
    clippy::cast_possible_truncation,
    unused_must_use,
    reason = "tests choose their own numbers, and look at effects where they matter"
)]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress};

use super::testing::assert_restores;
use super::*;
use crate::poll::HostPoll;
use crate::reset::inventory::Parts;
use crate::virtio::testing::{BUFFERS, Ring, ram, readable, writable};

fn disk(sectors: u64) -> Block {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0x5a; sectors as usize * 512]).unwrap();
    Block::read_only(0, file).unwrap()
}

fn vsock() -> Vsock {
    Vsock::new(HostPoll::new().unwrap().device(Bus::VSOCK))
}

fn bus() -> Bus {
    Bus::new(Serial::mute(), vsock(), None, vec![disk(8), disk(16)]).unwrap()
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
    let slot = bus.slots().unwrap()[index];
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
    let slots = bus.slots().unwrap();
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
    assert!(Bus::new(Serial::mute(), vsock(), None, disks(14)).is_ok());
    let refused = Bus::new(Serial::mute(), vsock(), None, disks(15)).err();
    assert_eq!(refused, Some(TooManyDevices { devices: 17 }));
}

#[test]
fn ports_reach_their_devices() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let serial = Serial::new(writer.into()).unwrap();
    let mut bus = Bus::new(serial, vsock(), None, Vec::new()).unwrap();
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
    let mut bus = Bus::new(Serial::mute(), vsock, None, Vec::new()).unwrap();
    let (ours, mut host) = UnixStream::pair().unwrap();
    let ends = HostEnds {
        channel: ours.into(),
        hub: None,
    };
    bus.attach_hosts(ends).unwrap();
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
    let state = bus.save().unwrap();
    assert!(state.vsock.device.channel.is_some());
    bus.restore(&state, &ram, Parts::ALL).unwrap();
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
        |bus, state| bus.restore(state, &ram, Parts::ALL).unwrap(),
    );
}

#[test]
fn errors_name_the_device() {
    let (mut bus, ram) = (bus(), ram());
    let good = bus.save().unwrap();
    let mut state = good.clone();
    state.disks[1].transport.interrupt_status = 8;
    let error = bus.restore(&state, &ram, Parts::ALL).unwrap_err();
    assert_eq!(error.to_string(), "state of disk 1");
    let mut state = good.clone();
    state.rng.transport.device_id = 2;
    let error = bus.restore(&state, &ram, Parts::ALL).unwrap_err();
    assert_eq!(error.to_string(), "state of the entropy device");
    let mut state = good.clone();
    state.disks.pop();
    let error = bus.restore(&state, &ram, Parts::ALL).unwrap_err();
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
        bus.restore(&state, &ram, Parts::ALL),
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

/// A net device with the network's end of its link, which keeps frames apart.
fn net(poll: &HostPoll) -> (Net, OwnedFd) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (network, tap) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let net = Net::on(tap, [2; 6], &poll.device(Bus::NET), |_, _| Ok(())).unwrap();
    (net, network)
}

#[test]
fn a_machine_with_a_network_has_it_before_its_disks() {
    let (poll, ram) = (HostPoll::new().unwrap(), ram());
    let (device, network) = net(&poll);
    let mut bus = Bus::new(Serial::mute(), vsock(), Some(device), vec![disk(8)]).unwrap();
    let bases: Vec<u64> = bus.slots().unwrap().iter().map(|slot| slot.base).collect();
    let ids: Vec<u32> = bases
        .iter()
        .map(|base| read32(&mut bus, base + 8))
        .collect();
    assert_eq!(ids, [19, 1, 2, 4]);
    initialise(&mut bus, Bus::NET.into(), &ram);
    let mut rx = ring(Bus::NET.into(), 0);
    rx.offer(&ram, &[writable(BUFFERS, 2048)]);
    let arrive = || rustix::io::write(&network, &[0; 100]).unwrap();
    arrive();
    // What came before the guest runs is not for it.
    bus.drop_queued_frames().unwrap();
    assert_eq!(poll.ready().unwrap(), []);
    arrive();
    let effects = bus.host_ready(&poll.ready().unwrap(), &ram);
    assert_eq!(effects.interrupts, Lines::one(FIRST_GSI + 1));
    assert_eq!(rx.take_used(&ram), [(0, 100)]);
    let state = bus.save().unwrap();
    assert_eq!(bus.restore(&state, &ram, Parts::ALL), Ok(()));
    let mut wrong = state.clone();
    wrong.net.as_mut().unwrap().transport.interrupt_status = 8;
    let error = bus.restore(&wrong, &ram, Parts::ALL).unwrap_err();
    assert_eq!(error.to_string(), "state of the net device");
    let mut without = state.clone();
    without.net = None;
    let error = bus.restore(&without, &ram, Parts::ALL).unwrap_err();
    assert_eq!(error.to_string(), "a net device is in the machine alone");
    let mut bare = Bus::new(Serial::mute(), vsock(), None, vec![disk(8)]).unwrap();
    let error = bare.restore(&state, &ram, Parts::ALL).unwrap_err();
    assert_eq!(error.to_string(), "a net device is in the snapshot alone");
}

#[test]
fn each_scratch_disk_is_kept_in_a_file_of_its_own() {
    let file = |byte: u8| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[byte; 4096]).unwrap();
        file
    };
    let empty = || {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        file
    };
    let scratch = |index, byte| Block::scratch(index, file(byte), empty(), 4096).unwrap();
    let disks = vec![scratch(0, 1), disk(8), scratch(2, 3)];
    let mut bus = Bus::new(Serial::mute(), vsock(), None, disks).unwrap();
    for count in [0, 1, 3] {
        let files = (0..count).map(|_| empty()).collect();
        let error = bus.rebase_disks(files).unwrap_err();
        assert!(matches!(error, RebaseError::Count { disks: 2, .. }));
    }
    let odd = tempfile::tempfile().unwrap();
    let error = bus.rebase_disks(vec![empty(), odd]).unwrap_err();
    assert!(matches!(error, RebaseError::Disk { index: 2, .. }));
    let kept = [empty(), empty()];
    let files = kept.iter().map(|file| file.try_clone().unwrap());
    bus.rebase_disks(files.collect()).unwrap();
    let byte = |file: &File| {
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut byte, 4095).unwrap();
        byte[0]
    };
    assert_eq!([byte(&kept[0]), byte(&kept[1])], [1, 3]);
}
