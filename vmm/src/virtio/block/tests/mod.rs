//! Tests of the disk, through real rings.

#![allow(
    clippy::cast_possible_truncation,
    unused_must_use,
    reason = "tests choose their own numbers, and look at effects where they matter"
)]

mod scratch;

use std::io::Write;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::request::{self, Data, Limits, Request, Status};
use super::*;
use crate::virtio::testing::{
    BUFFERS, Desc, Driver, RAM_SIZE, assert_survives_hostile_rings, readable, writable,
};
use crate::virtio::transport::VirtioRestoreError;
use crate::virtio::{DeviceRestoreError, F_EVENT_IDX};

const SECTORS: u64 = 100;
const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

/// An image in which every byte tells where it is.
fn image() -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&contents(0, SECTORS * 512)).unwrap();
    file
}

fn contents(from: u64, len: u64) -> Vec<u8> {
    (from..from + len)
        .map(|at| (at / 512 * 7 + at % 251) as u8)
        .collect()
}

fn disk() -> Driver<Block> {
    Driver::live(Block::read_only(0, image()).unwrap())
}

/// Makes a request and returns its status and the length in the used ring.
fn request(driver: &mut Driver<Block>, kind: u32, sector: u64, data: &[Desc]) -> (u8, u32) {
    let mut header = u64::from(kind).to_le_bytes().to_vec();
    header.extend(sector.to_le_bytes());
    driver.put(HEADER, &header);
    driver.put(STATUS, &[0xee]);
    let mut chain = vec![readable(HEADER, 16)];
    chain.extend(data);
    chain.push(writable(STATUS, 1));
    let head = driver.offer(0, &chain);
    assert!(driver.notify(0).interrupt);
    let used = driver.take_used(0);
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].0, u32::from(head));
    (driver.get(STATUS, 1)[0], used[0].1)
}

#[test]
fn the_configuration_tells_size_and_limits() {
    let driver = disk();
    assert_eq!(
        (driver.read(0x100), driver.read(0x104)),
        (SECTORS as u32, 0)
    );
    assert_eq!((driver.read(0x108), driver.read(0x10c)), (64 << 10, 254));
    assert_eq!(driver.read(0x110), 0);
    assert_ne!(driver.read(0x10) & (1 << 5), 0, "read-only");
}

#[test]
fn reads_are_exact() {
    let mut driver = disk();
    for (sector, sectors) in [(0, 1), (3, 8), (SECTORS - 1, 1), (0, SECTORS)] {
        let len = sectors * 512;
        let answer = request(&mut driver, IN, sector, &[writable(DATA, len as u32)]);
        assert_eq!(answer, (0, len as u32 + 1));
        assert_eq!(driver.get(DATA, len as usize), contents(sector * 512, len));
    }
}

#[test]
fn reads_scatter_over_buffers_of_any_size() {
    let mut driver = disk();
    let data = [
        writable(DATA, 1),
        writable(DATA + 0x1000, 510),
        writable(DATA + 0x2fff, 513),
    ];
    assert_eq!(request(&mut driver, IN, 5, &data), (0, 1025));
    let mut got = driver.get(DATA, 1);
    got.extend(driver.get(DATA + 0x1000, 510));
    got.extend(driver.get(DATA + 0x2fff, 513));
    assert_eq!(got, contents(5 * 512, 1024));
}

#[test]
fn what_is_read_is_dirty() {
    let mut driver = disk();
    let at = DATA + 0x10_0000;
    request(&mut driver, IN, 0, &[writable(at + 512, 4096)]);
    let dirty: Vec<bool> = (0..4)
        .map(|page| driver.is_dirty(at - 4096 + 4096 * page))
        .collect();
    assert_eq!(dirty, [false, true, true, false]);
}

#[test]
fn header_and_status_may_share_their_buffers() {
    let mut driver = disk();
    driver.put(HEADER, &[0; 16]);
    let head = driver.offer(
        0,
        &[
            readable(HEADER, 7),
            readable(HEADER + 7, 9),
            writable(DATA, 513),
        ],
    );
    let _ = driver.notify(0);
    assert_eq!(driver.take_used(0), [(head.into(), 513)]);
    assert_eq!(driver.get(DATA, 512), contents(0, 512));
    assert_eq!(driver.get(DATA + 512, 1), [0]);
}

#[test]
fn bad_requests_are_errors_to_the_guest() {
    let mut driver = disk();
    let sector = [writable(DATA, 512)];
    for (what, kind, at, data, status) in [
        ("end of the disk", IN, SECTORS, &sector[..], 1),
        ("past 2^64", IN, u64::MAX, &sector, 1),
        ("past 2^64 bytes", IN, u64::MAX / 512 + 1, &sector, 1),
        ("over the end", IN, SECTORS - 1, &[writable(DATA, 1024)], 1),
        ("half a sector", IN, 0, &[writable(DATA, 511)], 1),
        ("outside memory", IN, 0, &[writable(RAM_SIZE, 512)], 1),
        (
            "partly outside memory",
            IN,
            0,
            &[writable(RAM_SIZE - 256, 512)],
            1,
        ),
        ("write", OUT, 0, &[readable(DATA, 512)], 1),
        ("discard", 11, 0, &[readable(DATA, 16)], 2),
        ("unknown", 0xffff, 0, &[], 2),
    ] {
        assert_eq!(request(&mut driver, kind, at, data).0, status, "{what}");
        assert!(!driver.needs_reset(), "{what}");
    }
    assert_eq!(
        request(&mut driver, IN, 0, &sector),
        (0, 513),
        "and goes on"
    );
}

#[test]
fn writes_change_nothing() {
    let file = image();
    let mut driver = Driver::live(Block::read_only(0, file.try_clone().unwrap()).unwrap());
    driver.put(DATA, &[0xff; 512]);
    request(&mut driver, OUT, 0, &[readable(DATA, 512)]);
    let mut got = vec![0; 512];
    file.read_exact_at(&mut got, 0).unwrap();
    assert_eq!(got, contents(0, 512));
}

#[test]
fn the_shared_file_position_stays() {
    use std::io::Seek;
    let mut file = image();
    file.seek(std::io::SeekFrom::Start(77)).unwrap();
    let mut driver = Driver::live(Block::read_only(0, file.try_clone().unwrap()).unwrap());
    request(&mut driver, IN, 0, &[writable(DATA, 4096)]);
    assert_eq!(file.stream_position().unwrap(), 77);
}

#[test]
fn a_file_that_shrank_is_an_error() {
    let file = image();
    let mut driver = Driver::live(Block::read_only(0, file.try_clone().unwrap()).unwrap());
    file.set_len(512 + 100).unwrap();
    assert_eq!(request(&mut driver, IN, 1, &[writable(DATA, 512)]).0, 1);
    assert_eq!(request(&mut driver, IN, 0, &[writable(DATA, 512)]).0, 0);
}

#[test]
fn flush_and_name() {
    let mut driver = disk();
    assert_eq!(request(&mut driver, FLUSH, 0, &[]), (0, 1));
    assert_eq!(
        request(&mut driver, GET_ID, 0, &[writable(DATA, 20)]),
        (0, 21)
    );
    assert_eq!(driver.get(DATA, 20), b"snapback-disk-0\0\0\0\0\0");
    driver.put(DATA, &[0xee; 5]);
    assert_eq!(request(&mut driver, GET_ID, 0, &[writable(DATA, 4)]).0, 0);
    assert_eq!(driver.get(DATA, 5), b"snap\xee");
}

#[test]
fn a_request_without_room_for_a_status_needs_a_reset() {
    for chain in [
        &[readable(HEADER, 16)][..],
        &[readable(HEADER, 16), writable(STATUS, 0)],
        &[readable(HEADER, 16), writable(RAM_SIZE, 1)],
        &[readable(HEADER, 16), writable(u64::MAX, 1)],
    ] {
        let mut driver = disk();
        driver.offer(0, chain);
        let _ = driver.notify(0);
        assert!(driver.needs_reset());
        assert_eq!(driver.take_used(0), []);
    }
}

#[test]
fn a_header_that_cannot_be_read_is_an_error() {
    let mut driver = disk();
    for header in [readable(HEADER, 15), readable(RAM_SIZE - 8, 16)] {
        driver.put(STATUS, &[0xee]);
        driver.offer(0, &[header, writable(STATUS, 1)]);
        let _ = driver.notify(0);
        assert_eq!(driver.get(STATUS, 1), [1]);
    }
}

#[test]
fn one_call_moves_a_bounded_number_of_bytes() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    let mut driver = Driver::live(Block::read_only(0, file).unwrap());
    driver.put(HEADER, &[0; 16]);
    // Each reads 15 MiB, into the same MiB again and again.
    let data = (0..15).map(|_| writable(DATA, 1 << 20));
    let mut chain = vec![readable(HEADER, 16)];
    chain.extend(data);
    chain.push(writable(STATUS, 1));
    for _ in 0..8 {
        driver.offer(0, &chain);
    }
    let mut signals = driver.notify(0);
    let mut most = driver.take_used(0).len();
    let mut all = most;
    while signals.more_work {
        use crate::virtio::transport::MmioDevice;
        signals = driver.transport.continue_work(&driver.ram);
        let now = driver.take_used(0).len();
        most = most.max(now);
        all += now;
    }
    assert_eq!((most, all), (3, 8));
    // A driver that obeys SIZE_MAX and SEG_MAX never asks for 16 MiB at once.
    let mut chain = vec![readable(HEADER, 16)];
    chain.extend((0..16).map(|_| writable(DATA, 1 << 20)));
    chain.push(writable(STATUS, 1));
    driver.offer(0, &chain);
    let _ = driver.notify(0);
    assert_eq!(driver.get(STATUS, 1), [1]);
}

#[test]
fn hostile_rings_are_survived() {
    assert_survives_hostile_rings(0, || Block::read_only(0, image()).unwrap());
}

#[test]
fn images_are_whole_sectors() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(513).unwrap();
    assert!(matches!(
        Block::read_only(0, file),
        Err(OpenError::Uneven { bytes: 513 })
    ));
}

#[test]
fn state_restores() {
    let file = image();
    let new = || Block::read_only(0, file.try_clone().unwrap()).unwrap();
    let mut driver = Driver::live_with(new(), crate::virtio::COMMON_FEATURES | F_EVENT_IDX);
    let ram = driver.ram.clone();
    driver.put(HEADER, &[0; 16]);
    driver.offer(0, &[readable(HEADER, 16), writable(STATUS, 1)]);
    crate::bus::testing::assert_restores(
        &mut driver.transport,
        |transport| transport.save(),
        |transport| {
            use crate::virtio::transport::MmioDevice;
            let _ = transport.notify(0, &ram);
        },
        |transport, state| transport.restore(state, &ram).unwrap(),
    );
    let mut state = driver.transport.save();
    state.device.capacity += 1;
    let wrong = DeviceRestoreError::Capacity {
        snapshot: SECTORS + 1,
        machine: SECTORS,
    };
    assert_eq!(
        driver.transport.restore(&state, &ram),
        Err(VirtioRestoreError::Device(wrong))
    );
}

proptest! {
    #[test]
    fn a_parsed_range_is_inside_the_disk(
        header: [u8; 16],
        small in any::<bool>(),
        data_len in 0_u64..1 << 33,
        given in prop_oneof![Just(16), 0_u64..1 << 33],
        segment: Option<[u8; 16]>,
        capacity in 0_u64..1 << 50,
        discard in prop_oneof![Just(0), Just(1_u64 << 30)],
    ) {
        let mut header = header;
        if small {
            header[0] %= 14;
            header[1..4].fill(0);
            header[11..].fill(0);
        }
        let limits = Limits { capacity, transfer: 1 << 24, discard, zeroes: discard / 2 };
        let segment = segment.map(|mut bytes| {
            bytes[5..8].fill(0);
            bytes[11..].fill(0);
            bytes
        });
        let data = Data { given, segment, room: data_len };
        let (range, most, writes) = match request::parse(header, data, limits) {
            Ok(Request::Read(range)) => {
                prop_assert_eq!(range.end - range.start, data_len);
                (range, 1 << 24, false)
            }
            Ok(Request::Write(range)) => {
                prop_assert_eq!(range.end - range.start, given);
                (range, 1 << 24, true)
            }
            Ok(Request::Discard(range)) => (range, discard, true),
            Ok(Request::WriteZeroes { range, .. }) => (range, discard / 2, true),
            Ok(Request::Flush | Request::GetId { .. }) => return Ok(()),
            Err(status) => {
                prop_assert_ne!(status, Status::Ok);
                return Ok(());
            }
        };
        prop_assert!(range.start <= range.end && range.end - range.start <= most);
        prop_assert!(range.end <= capacity * 512);
        prop_assert!(discard > 0 || !writes);
    }

    #[test]
    fn arbitrary_rings_are_survived(
        table in proptest::collection::vec((any::<u32>(), any::<u16>(), 0_u16..8, 0_u16..8), 8),
        heads in proptest::collection::vec(0_u16..9, 1..8),
        bytes in proptest::collection::vec(any::<u8>(), 64),
    ) {
        let mut driver = disk();
        driver.put(BUFFERS, &bytes);
        for (index, (addr, len, flags, next)) in (0..).zip(&table) {
            // Around the buffers and just out of memory are the interesting places.
            let base = if addr % 5 == 0 { RAM_SIZE - 64 } else { BUFFERS };
            let addr = base + u64::from(addr % 256);
            driver.rings[0].write_desc(&driver.ram, index, addr, u32::from(*len), *flags, *next);
        }
        for head in &heads {
            driver.rings[0].publish(&driver.ram, *head);
        }
        let _ = driver.notify(0);
        prop_assert!(driver.take_used(0).len() <= heads.len());
    }
}
