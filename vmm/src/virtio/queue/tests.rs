//! Tests of the queue glue: hostile rings and chains, and who wants which signal.

#![allow(
    clippy::cast_possible_truncation,
    unused_must_use,
    reason = "tests choose their own numbers, and look at effects where they matter"
)]

use proptest::prelude::*;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, Permissions};

use super::*;
use crate::memory::GuestRam;
use crate::virtio::testing::{BUFFERS, RAM_SIZE, Ring, ram, readable, writable};

const SIZE: u16 = 8;

fn queue(ram: &GuestRam, event_idx: bool) -> (VirtQueue, Ring) {
    let ring = Ring::new(0, SIZE);
    let mut queue = VirtQueue::new(SIZE);
    for (register, address) in [
        (QueueRegister::DescTable, ring.desc),
        (QueueRegister::AvailRing, ring.avail),
        (QueueRegister::UsedRing, ring.used),
    ] {
        queue.set_address(register, false, address as u32);
        queue.set_address(register, true, (address >> 32) as u32);
    }
    assert!(queue.make_ready(event_idx, ram));
    (queue, ring)
}

fn is_malformed(result: Result<Option<Chain>, QueueError>) -> bool {
    matches!(result, Err(QueueError::Chain { .. }))
}

#[test]
fn a_chain_arrives_as_it_was_offered() {
    let ram = ram();
    let (mut queue, mut ring) = queue(&ram, false);
    let head = ring.offer(
        &ram,
        &[
            readable(BUFFERS, 3),
            readable(BUFFERS + 0x1000, 5),
            writable(BUFFERS + 0x2000, 7),
        ],
    );
    ram.write_slice(b"abc", GuestAddress(BUFFERS)).unwrap();
    ram.write_slice(b"defgh", GuestAddress(BUFFERS + 0x1000))
        .unwrap();
    let chain = queue.pop(&ram).unwrap().unwrap();
    assert_eq!(
        (chain.head, chain.readable.len(), chain.writable.len()),
        (head, 8, 7)
    );
    let mut bytes = [0; 5];
    chain.readable.read(&ram, 2, &mut bytes).unwrap();
    assert_eq!(&bytes, b"cdefg");
    assert!(
        chain.readable.read(&ram, 4, &mut bytes).is_err(),
        "past the end"
    );
    chain.writable.write(&ram, 5, b"yz").unwrap();
    assert!(
        chain.writable.write(&ram, 6, b"yz").is_err(),
        "past the end"
    );
    let mut bytes = [0; 2];
    ram.read_slice(&mut bytes, GuestAddress(BUFFERS + 0x2005))
        .unwrap();
    assert_eq!(&bytes, b"yz");
    assert!(queue.pop(&ram).unwrap().is_none());
}

#[test]
fn hostile_chains_are_malformed() {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    type Case<'a> = (&'a str, &'a [(u64, u32, u16, u16)], u16);
    let cases: [Case; 9] = [
        ("loop on itself", &[(BUFFERS, 1, NEXT, 0)], 0),
        (
            "loop of two",
            &[(BUFFERS, 1, NEXT, 1), (BUFFERS, 1, NEXT, 0)],
            0,
        ),
        ("head out of the table", &[], SIZE),
        ("head far out of the table", &[], 0xffff),
        ("next out of the table", &[(BUFFERS, 1, NEXT, SIZE)], 0),
        (
            "readable behind writable",
            &[(BUFFERS, 1, NEXT | WRITE, 1), (BUFFERS, 1, 0, 0)],
            0,
        ),
        (
            "indirect table outside memory",
            &[(RAM_SIZE, 16, INDIRECT, 0)],
            0,
        ),
        (
            "indirect table of odd length",
            &[(BUFFERS, 17, INDIRECT, 0)],
            0,
        ),
        (
            "4 GiB in one chain",
            &[(BUFFERS, u32::MAX, NEXT, 1), (BUFFERS, u32::MAX, 0, 0)],
            0,
        ),
    ];
    for (what, descriptors, head) in cases {
        let ram = ram();
        let (mut queue, mut ring) = queue(&ram, false);
        for (index, (addr, len, flags, next)) in (0..).zip(descriptors) {
            ring.write_desc(&ram, index, *addr, *len, *flags, *next);
        }
        ring.publish(&ram, head);
        assert!(is_malformed(queue.pop(&ram)), "{what}");
    }
}

#[test]
fn indirect_tables_work_and_do_not_nest_or_grow() {
    let ram = ram();
    let (mut queue, mut ring) = queue(&ram, false);
    let table = Ring {
        desc: BUFFERS,
        ..Ring::new(7, SIZE)
    };
    ring.write_desc(&ram, 0, BUFFERS, 32, 4, 0);
    table.write_desc(&ram, 0, BUFFERS + 0x1000, 10, 1, 1);
    table.write_desc(&ram, 1, BUFFERS + 0x2000, 20, 2, 0);
    ring.publish(&ram, 0);
    let chain = queue.pop(&ram).unwrap().unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (10, 20));
    // A table in the table.
    table.write_desc(&ram, 1, BUFFERS, 32, 4, 0);
    ring.publish(&ram, 0);
    assert!(is_malformed(queue.pop(&ram)));
    // More descriptors than the queue has.
    ring.write_desc(&ram, 0, BUFFERS, 16 * 20, 4, 0);
    for index in 0..20 {
        table.write_desc(
            &ram,
            index,
            BUFFERS + 0x1000,
            1,
            u16::from(index < 19),
            index + 1,
        );
    }
    ring.publish(&ram, 0);
    assert!(is_malformed(queue.pop(&ram)));
}

#[test]
fn an_index_that_jumps_breaks_the_ring() {
    let ram = ram();
    let (mut queue, ring) = queue(&ram, false);
    ring.set_avail_idx(&ram, SIZE + 1);
    assert!(matches!(queue.pop(&ram), Err(QueueError::Ring(_))));
}

#[test]
fn buffers_outside_memory_are_out_of_reach() {
    let ram = ram();
    for (addr, len) in [
        (RAM_SIZE, 1),
        (RAM_SIZE - 1, 2),
        (u64::MAX, 2),
        (u64::MAX - 7, 8),
    ] {
        let (mut queue, mut ring) = queue(&ram, false);
        ring.offer(&ram, &[readable(addr, len), writable(addr, len)]);
        let chain = queue.pop(&ram).unwrap().unwrap();
        let mut bytes = vec![0; len as usize];
        assert!(matches!(
            chain.readable.read(&ram, 0, &mut bytes),
            Err(QueueError::Buffer)
        ));
        assert!(matches!(
            chain.writable.write(&ram, 0, &bytes),
            Err(QueueError::Buffer)
        ));
        let slices = chain
            .writable
            .slices(&ram, 0, u64::from(len) + 1, Permissions::Write);
        assert!(matches!(slices, Err(QueueError::Buffer)));
    }
}

#[test]
fn flag_suppresses_interrupts() {
    let ram = ram();
    let (mut queue, ring) = queue(&ram, false);
    assert!(!queue.take_signal(&ram).unwrap(), "nothing was used");
    queue.push_used(&ram, 0, 0).unwrap();
    assert!(queue.take_signal(&ram).unwrap());
    assert!(!queue.take_signal(&ram).unwrap(), "once is enough");
    ram.write_obj(1_u16, GuestAddress(ring.avail)).unwrap();
    queue.push_used(&ram, 0, 0).unwrap();
    assert!(!queue.take_signal(&ram).unwrap());
}

#[test]
fn indices_suppress_interrupts_and_notifications() {
    let ram = ram();
    let (mut queue, mut ring) = queue(&ram, true);
    ring.set_used_event(&ram, 1);
    queue.push_used(&ram, 0, 0).unwrap();
    assert!(!queue.take_signal(&ram).unwrap(), "entry 0 is not entry 1");
    queue.push_used(&ram, 0, 0).unwrap();
    assert!(queue.take_signal(&ram).unwrap());
    queue.push_used(&ram, 0, 0).unwrap();
    assert!(
        !queue.take_signal(&ram).unwrap(),
        "the driver has not asked again"
    );
    for expected in 1..20 {
        ring.offer(&ram, &[readable(BUFFERS, 1)]);
        assert!(queue.pop(&ram).unwrap().is_some());
        assert!(queue.pop(&ram).unwrap().is_none());
        assert_eq!(
            ring.avail_event(&ram),
            expected,
            "empty: tell us of the next"
        );
    }
}

#[test]
fn undo_offers_the_chain_again() {
    let ram = ram();
    let (mut queue, mut ring) = queue(&ram, true);
    let head = ring.offer(&ram, &[readable(BUFFERS, 1)]);
    let before = queue.save();
    assert_eq!(queue.pop(&ram).unwrap().unwrap().head, head);
    queue.undo_pop();
    assert_eq!(queue.save(), before);
    assert_eq!(queue.pop(&ram).unwrap().unwrap().head, head);
}

#[test]
fn what_the_device_writes_is_dirty() {
    let ram = ram();
    let (mut queue, mut ring) = queue(&ram, false);
    ring.offer(&ram, &[writable(BUFFERS + 0x5000, 0x1800)]);
    let bitmap = ram.find_region(GuestAddress(0)).unwrap().bitmap();
    let dirty = || -> Vec<usize> {
        (0..RAM_SIZE as usize)
            .step_by(4096)
            .filter(|at| bitmap.dirty_at(*at))
            .collect()
    };
    let chain = queue.pop(&ram).unwrap().unwrap();
    let by_driver = dirty();
    chain.writable.write(&ram, 0xfff, b"ab").unwrap();
    queue.push_used(&ram, chain.head, 2).unwrap();
    let mut by_device = dirty();
    by_device.retain(|page| !by_driver.contains(page));
    let buffer = BUFFERS as usize + 0x5000;
    assert_eq!(by_device, [ring.used as usize, buffer, buffer + 0x1000]);
}

#[test]
fn unusable_rings_do_not_become_ready() {
    let ram = ram();
    let spoil: [fn(&mut VirtQueue); 8] = [
        |queue| queue.set_size(0),
        |queue| queue.set_size(3),
        |queue| queue.set_size(u32::from(SIZE) * 2),
        |queue| queue.set_size(0x1_0008),
        |queue| queue.set_address(QueueRegister::DescTable, false, 0x1_0008),
        |queue| queue.set_address(QueueRegister::AvailRing, false, 0),
        |queue| queue.set_address(QueueRegister::UsedRing, true, 1),
        |queue| queue.set_address(QueueRegister::AvailRing, false, RAM_SIZE as u32 - 4),
    ];
    for spoil in spoil {
        let (mut queue, _) = queue(&ram, false);
        queue.stop();
        spoil(&mut queue);
        assert!(!queue.make_ready(false, &ram));
        let state = QueueV1 {
            ready: true,
            ..queue.save()
        };
        let refused = VirtQueue::new(SIZE).restore(&state, false, &ram);
        assert_eq!(refused, Err(QueueRestoreError::Unusable));
    }
}

#[test]
fn state_restores() {
    let ram = ram();
    let (mut queue, mut ring) = queue(&ram, true);
    ring.offer(&ram, &[readable(BUFFERS, 1)]);
    crate::bus::testing::assert_restores(
        &mut queue,
        VirtQueue::save,
        |queue| {
            queue.pop(&ram).unwrap();
            queue.push_used(&ram, 0, 0).unwrap();
        },
        |queue, state| queue.restore(state, true, &ram).unwrap(),
    );
    let state = QueueV1 {
        ready: false,
        next_avail: 1,
        ..queue.save()
    };
    assert_eq!(
        queue.restore(&state, true, &ram),
        Err(QueueRestoreError::NotReady)
    );
}

proptest! {
    #[test]
    fn arbitrary_rings_never_panic_or_spin(
        table in proptest::collection::vec(any::<u8>(), 16 * usize::from(SIZE)),
        small in any::<bool>(),
        avail in proptest::collection::vec(any::<u16>(), 12),
        event_idx in any::<bool>(),
    ) {
        let ram = ram();
        let (mut queue, ring) = queue(&ram, event_idx);
        ram.write_slice(&table, GuestAddress(ring.desc)).unwrap();
        for (slot, value) in (0..).zip(&avail) {
            // Small numbers reach further into the code than arbitrary ones.
            let value = if small { value % 10 } else { *value };
            ram.write_obj(value, GuestAddress(ring.avail + 2 * slot)).unwrap();
        }
        let mut taken = 0;
        while let Ok(Some(chain)) = queue.pop(&ram) {
            taken += 1;
            prop_assert!(taken <= SIZE, "more chains than the ring has room for");
            let mut byte = [0];
            let _ = chain.readable.read(&ram, 0, &mut byte);
            let _ = chain.writable.write(&ram, chain.writable.len() / 2, &byte);
            let _ = chain.readable.slices(&ram, 0, chain.readable.len(), Permissions::Read);
            if queue.push_used(&ram, chain.head, 0).is_err() {
                break;
            }
        }
        let _ = queue.take_signal(&ram);
    }
}

#[test]
fn chains_that_are_used_together_are_seen_together() {
    let ram = ram();
    let (mut queue, mut ring) = queue(&ram, true);
    let offer = |ring: &mut Ring| {
        for nth in 0..3 {
            ring.offer(&ram, &[writable(BUFFERS + 0x1000 * nth, 16)]);
        }
    };
    // Twice around the ring of eight, over its end.
    for round in 0..6_u32 {
        offer(&mut ring);
        let heads: Vec<u16> = (0..3)
            .map(|_| queue.pop(&ram).unwrap().unwrap().head)
            .collect();
        assert_eq!(ring.take_used(&ram), []);
        let used: Vec<(u16, u32)> = heads.iter().copied().zip(round..).collect();
        queue.push_used_together(&ram, &used).unwrap();
        let seen: Vec<(u32, u32)> = used.iter().map(|(h, len)| (u32::from(*h), *len)).collect();
        // The driver wanted to be told of the middle one.
        ring.set_used_event(&ram, (3 * round + 1) as u16);
        assert!(queue.take_signal(&ram).unwrap());
        assert_eq!(ring.take_used(&ram), seen);
        assert!(!queue.take_signal(&ram).unwrap(), "told once");
    }
    queue.push_used_together(&ram, &[]).unwrap();
    assert_eq!(ring.take_used(&ram), []);
}
