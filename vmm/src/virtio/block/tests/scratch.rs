//! Scratch disks: what is written is there until a reset, what fails is an error to
//! the guest, and the overlay stays in its bounds.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::sys::memfd;

const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const UNMAP: u32 = 1;
const LIMIT: u64 = 1 << 20;
/// Where a segment for discard and write zeroes lies.
const SEGMENT: u64 = BUFFERS + 0x200;

struct Scratch {
    driver: Driver<Block>,
    base: File,
    overlay: File,
}

fn scratch() -> Scratch {
    scratch_with(LIMIT)
}

fn scratch_with(limit: u64) -> Scratch {
    let (base, overlay) = (image(), overlay(SECTORS * 512));
    let share = |file: &File| file.try_clone().unwrap();
    let disk = Block::scratch(0, share(&base), share(&overlay), limit).unwrap();
    Scratch {
        driver: Driver::live(disk),
        base,
        overlay,
    }
}

fn overlay(len: u64) -> File {
    memfd::create("overlay", len).unwrap().into()
}

/// Bytes that a file takes up.
fn taken(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

impl Scratch {
    fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.driver.put(DATA, bytes);
        let (status, used) = request(
            &mut self.driver,
            OUT,
            sector,
            &[readable(DATA, bytes.len() as u32)],
        );
        assert_eq!(used, 1);
        status
    }

    fn read(&mut self, sector: u64, sectors: u64) -> Vec<u8> {
        let len = sectors * 512;
        self.driver.put(DATA, &vec![0xee; len as usize]);
        let answer = request(&mut self.driver, IN, sector, &[writable(DATA, len as u32)]);
        assert_eq!(answer, (0, len as u32 + 1));
        self.driver.get(DATA, len as usize)
    }

    fn segment(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut segment = sector.to_le_bytes().to_vec();
        segment.extend(sectors.to_le_bytes());
        segment.extend(flags.to_le_bytes());
        self.driver.put(SEGMENT, &segment);
        request(&mut self.driver, kind, 0, &[readable(SEGMENT, 16)]).0
    }

    /// As a reset of the machine.
    fn reset(&mut self) {
        let mut state = self.driver.transport.save();
        state.device.own_clusters = 0;
        self.driver
            .transport
            .restore(&state, &self.driver.ram)
            .unwrap();
    }
}

#[test]
fn the_configuration_tells_what_can_be_written() {
    let driver = scratch().driver;
    let features = driver.read(0x10);
    assert_eq!(features & (1 << 5), 0, "not read-only");
    for bit in [1, 2, 9, 10, 13, 14] {
        assert_ne!(features & (1 << bit), 0, "feature {bit}");
    }
    let at = |offset: u64| driver.read(0x100 + offset);
    assert_eq!(at(24) & 0xff, 3, "physical blocks of 8 sectors");
    assert_eq!((at(36), at(40), at(44)), (1 << 21, 1, 8), "discard");
    assert_eq!((at(48), at(52), at(56)), (1 << 14, 1, 1), "write zeroes");
    let driver = disk();
    let at = |offset: u64| driver.read(0x100 + offset);
    assert_eq!((36..60).step_by(4).map(at).max(), Some(0), "read-only");
}

#[test]
fn every_disk_has_a_name_of_its_own() {
    for index in [0, 1, 13] {
        let mut driver = Driver::live(Block::read_only(index, image()).unwrap());
        assert_eq!(request(&mut driver, GET_ID, 0, &[writable(DATA, 20)]).0, 0);
        let name = String::from_utf8(driver.get(DATA, 20)).unwrap();
        assert_eq!(
            name.trim_end_matches('\0'),
            format!("snapback-disk-{index}")
        );
    }
}

#[test]
fn what_is_written_is_read_and_the_base_stays() {
    let mut disk = scratch();
    // Whole clusters, parts of one, over the border of two, the last sector.
    for (sector, sectors) in [(8, 8), (17, 2), (30, 5), (SECTORS - 1, 1), (0, 1)] {
        let bytes = vec![sector as u8 ^ 0x5a; sectors as usize * 512];
        assert_eq!(disk.write(sector, &bytes), 0);
        assert_eq!(disk.read(sector, sectors), bytes);
        let after = (sector + sectors).min(SECTORS - 1);
        if after > sector {
            assert_eq!(disk.read(after, 1), contents(after * 512, 512));
        }
    }
    assert_eq!(bytes_of(&disk.base), contents(0, SECTORS * 512));
    assert_eq!(request(&mut disk.driver, FLUSH, 0, &[]), (0, 1));
}

#[test]
fn what_is_written_is_not_dirty_memory() {
    let mut disk = scratch();
    disk.driver.put(DATA + 0x10_0000, &[1; 4096]);
    let before = disk.driver.is_dirty(DATA + 0x20_0000);
    let data = [readable(DATA + 0x20_0000, 4096)];
    assert_eq!(request(&mut disk.driver, OUT, 0, &data).0, 0);
    assert_eq!(
        (before, disk.driver.is_dirty(DATA + 0x20_0000)),
        (false, false)
    );
}

#[test]
fn a_driver_that_resets_the_device_keeps_its_data_and_a_reset_drops_it() {
    let mut disk = scratch();
    disk.write(3, &[7; 512]);
    disk.driver.write(0x70, 0);
    disk.driver = Driver {
        rings: Driver::cold(Block::read_only(0, image()).unwrap()).rings,
        ..disk.driver
    };
    let features = crate::virtio::COMMON_FEATURES & !F_EVENT_IDX;
    disk.driver.initialise(features);
    assert_eq!(disk.read(3, 1), [7; 512]);
    assert!(taken(&disk.overlay) > 0);
    disk.reset();
    assert_eq!(disk.read(3, 1), contents(3 * 512, 512));
    assert_eq!(taken(&disk.overlay), 0);
}

#[test]
fn a_discard_gives_space_back_and_leaves_zeroes() {
    let mut disk = scratch();
    assert_eq!(disk.write(0, &[9; 64 * 512]), 0);
    assert_eq!(taken(&disk.overlay), 64 * 512);
    assert_eq!(disk.segment(DISCARD, 4, 36, 0), 0);
    // Clusters 1 to 4; what is not a whole one stays.
    assert_eq!(taken(&disk.overlay), (64 - 32) * 512);
    assert_eq!(disk.read(0, 8), [9; 4096]);
    assert_eq!(disk.read(8, 32), [0; 32 * 512]);
    assert_eq!(disk.read(40, 24), [9; 24 * 512]);
    // Of what was never written, too; the short cluster at the end counts as whole.
    assert_eq!(disk.segment(DISCARD, 64, 36, 0), 0);
    assert_eq!(disk.read(64, 36), [0; 36 * 512]);
}

#[test]
fn zeroes_take_up_space_only_when_they_must() {
    let mut disk = scratch();
    assert_eq!(disk.segment(WRITE_ZEROES, 3, 40, UNMAP), 0);
    assert_eq!(disk.read(0, 3), contents(0, 3 * 512));
    assert_eq!(disk.read(3, 40), [0; 40 * 512]);
    assert_eq!(disk.read(43, 5), contents(43 * 512, 5 * 512));
    assert_eq!(taken(&disk.overlay), 2 * 4096, "the two ends");
    assert_eq!(disk.segment(WRITE_ZEROES, 8, 16, 0), 0);
    assert_eq!(taken(&disk.overlay), 4 * 4096);
    assert_eq!(disk.read(3, 40), [0; 40 * 512]);
}

#[test]
fn bad_segments_are_errors_and_change_nothing() {
    let mut disk = scratch();
    for (what, kind, sector, sectors, flags, status) in [
        ("past the end", DISCARD, SECTORS - 1, 2, 0, 1),
        ("past 2^64", DISCARD, u64::MAX, 1, 0, 1),
        ("too long", DISCARD, 0, (1 << 21) + 1, 0, 1),
        ("unmap of a discard", DISCARD, 0, 8, UNMAP, 2),
        ("unknown flag", WRITE_ZEROES, 0, 8, 2, 2),
        ("too many zeroes", WRITE_ZEROES, 0, (1 << 14) + 1, UNMAP, 1),
        ("secure erase", 14, 0, 8, 0, 2),
    ] {
        assert_eq!(disk.segment(kind, sector, sectors, flags), status, "{what}");
    }
    for data in [
        &[][..],
        &[readable(SEGMENT, 15)],
        &[readable(SEGMENT, 32)],
        &[readable(RAM_SIZE - 8, 16)],
    ] {
        assert_eq!(request(&mut disk.driver, DISCARD, 0, data).0, 1);
        assert_eq!(request(&mut disk.driver, WRITE_ZEROES, 0, data).0, 1);
    }
    for (sector, data) in [
        (SECTORS, [readable(DATA, 512)]),
        (0, [readable(DATA, 511)]),
        (0, [readable(RAM_SIZE - 256, 512)]),
        (u64::MAX / 512 + 1, [readable(DATA, 512)]),
    ] {
        assert_eq!(request(&mut disk.driver, OUT, sector, &data).0, 1);
    }
    assert_eq!(disk.read(0, SECTORS), contents(0, SECTORS * 512));
    assert_eq!(taken(&disk.overlay), 0);
}

#[test]
fn the_overlay_never_exceeds_its_limit() {
    let mut disk = scratch_with(3 * 4096 + 4095);
    assert_eq!(disk.write(0, &[1; 3 * 4096]), 0);
    assert_eq!(disk.write(24, &[2; 512]), 1, "a fourth cluster");
    assert_eq!(
        disk.write(16, &[2; 2 * 4096]),
        1,
        "one that is there and one not"
    );
    assert_eq!(disk.read(16, 16)[..4096], [1; 4096]);
    assert_eq!(disk.read(24, 8), contents(24 * 512, 4096));
    assert_eq!(disk.write(8, &[3; 4096]), 0, "one that is there");
    assert_eq!(disk.segment(WRITE_ZEROES, 24, 8, 0), 1);
    assert_eq!(disk.segment(WRITE_ZEROES, 24, 8, UNMAP), 0);
    assert_eq!(taken(&disk.overlay), 3 * 4096);
    assert_eq!(disk.segment(DISCARD, 0, 8, 0), 0);
    assert_eq!(disk.write(24, &[2; 512]), 0, "there is room again");
    assert_eq!(disk.read(24, 8)[512..], [0; 4096 - 512]);
    assert_eq!(taken(&disk.overlay), 3 * 4096);
}

#[test]
fn errors_of_the_hosts_files_reach_the_guest() {
    let mut disk = scratch();
    disk.base.set_len(4096 + 100).unwrap();
    assert_eq!(disk.write(16, &[1; 4096]), 0, "needs no base");
    assert_eq!(
        disk.write(24, &[1; 512]),
        1,
        "needs the rest of the cluster"
    );
    let data = [writable(DATA, 4096)];
    assert_eq!(request(&mut disk.driver, IN, 8, &data).0, 1);
    assert_eq!(request(&mut disk.driver, IN, 0, &data).0, 0);
    assert_eq!(request(&mut disk.driver, IN, 16, &data).0, 0);
    assert_eq!(taken(&disk.overlay), 4096);

    // An overlay that cannot be written at all.
    let overlay = memfd::read_only(overlay(SECTORS * 512).as_fd()).unwrap();
    let block = Block::scratch(0, image(), overlay.into(), LIMIT).unwrap();
    let mut disk = Scratch {
        driver: Driver::live(block),
        ..disk
    };
    assert_eq!(disk.write(0, &[1; 4096]), 1);
    assert_eq!(disk.write(1, &[1; 512]), 1);
    assert_eq!(disk.segment(DISCARD, 0, 8, 0), 1);
    assert_eq!(disk.segment(WRITE_ZEROES, 0, 8, 0), 1);
    assert_eq!(disk.read(0, 16), contents(0, 16 * 512));
    let state = crate::virtio::transport::VirtioV1 {
        device: BlockV1 {
            capacity: SECTORS,
            own_clusters: 0,
        },
        ..disk.driver.transport.save()
    };
    // A write was tried, and what it left cannot be dropped: no reset.
    assert!(matches!(
        disk.driver.transport.restore(&state, &disk.driver.ram),
        Err(VirtioRestoreError::Device(DeviceRestoreError::Overlay(_)))
    ));
}

#[test]
fn one_call_writes_a_bounded_number_of_zeroes() {
    let file = || {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        file
    };
    let disk = Block::scratch(0, file(), file(), 64 << 20).unwrap();
    let mut driver = Driver::live(disk);
    let mut header = u64::from(WRITE_ZEROES).to_le_bytes().to_vec();
    header.extend([0; 16]);
    header.extend((1_u64 << 14).to_le_bytes());
    driver.put(HEADER, &header);
    for _ in 0..8 {
        driver.offer(0, &[readable(HEADER, 32), writable(STATUS, 1)]);
    }
    assert!(driver.notify(0).more_work);
    assert_eq!(driver.take_used(0).len(), 4, "of 8 MiB each");
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let open = |base: u64, overlay: u64| {
        let [base, overlay] = [base, overlay].map(|len| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(len).unwrap();
            file
        });
        Block::scratch(0, base, overlay, LIMIT)
    };
    assert!(open(8192, 8192).is_ok());
    assert!(matches!(open(8191, 8192), Err(OpenError::Uneven { .. })));
    assert!(matches!(open(8192, 4096), Err(OpenError::Overlay { .. })));
    assert!(matches!(
        open(65 << 30, 65 << 30),
        Err(OpenError::TooLarge { .. })
    ));
}

#[test]
fn state_restores() {
    let mut disk = scratch();
    let ram = disk.driver.ram.clone();
    disk.driver.put(HEADER, &u64::from(OUT).to_le_bytes());
    disk.driver.put(HEADER + 8, &[0; 8]);
    let chain = [
        readable(HEADER, 16),
        readable(DATA, 4096),
        writable(STATUS, 1),
    ];
    disk.driver.offer(0, &chain);
    crate::bus::testing::assert_restores(
        &mut disk.driver.transport,
        |transport| transport.save(),
        |transport| {
            use crate::virtio::transport::MmioDevice;
            let _ = transport.notify(0, &ram);
            assert_eq!(transport.save().device.own_clusters, 1);
        },
        |transport, state| transport.restore(state, &ram).unwrap(),
    );
    assert_eq!(bytes_of(&disk.overlay), vec![0; 512 * SECTORS as usize]);
    let mut state = disk.driver.transport.save();
    state.device.own_clusters = 1;
    let refused = disk.driver.transport.restore(&state, &ram);
    let expected = DeviceRestoreError::OwnClusters { clusters: 1 };
    assert_eq!(refused, Err(VirtioRestoreError::Device(expected)));
}

#[test]
fn what_a_disk_holds_becomes_its_base() {
    let mut disk = scratch();
    disk.write(9, &[1; 1024]);
    disk.segment(DISCARD, 24, 8, 0);
    let file = overlay(SECTORS * 512);
    let keep = file.try_clone().unwrap();
    let wrong = overlay(SECTORS * 512 + 512);
    let block = disk.driver.transport.device_mut();
    assert!(block.rebase(wrong).is_err());
    block.rebase(file).unwrap();
    assert_eq!(disk.driver.transport.save().device.own_clusters, 0);
    assert_eq!(taken(&disk.overlay), 0);
    let mut expected = contents(0, SECTORS * 512);
    expected[9 * 512..11 * 512].fill(1);
    expected[24 * 512..32 * 512].fill(0);
    assert_eq!(bytes_of(&keep), expected);
    assert!(taken(&keep) < SECTORS * 512, "a hole stays a hole");
    assert_eq!(disk.read(0, SECTORS), expected);
    disk.write(9, &[2; 512]);
    disk.reset();
    assert_eq!(disk.read(0, SECTORS), expected);
    assert_eq!(bytes_of(&disk.base), contents(0, SECTORS * 512));
    let mut image = Block::read_only(0, image()).unwrap();
    assert!(image.rebase(overlay(SECTORS * 512)).is_err());
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        sector: u64,
        sectors: u64,
        byte: u8,
    },
    Discard {
        sector: u64,
        sectors: u64,
    },
    Zero {
        sector: u64,
        sectors: u64,
        unmap: bool,
    },
    Snapshot,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let range =
        || (0..SECTORS, 1_u64..40).prop_map(|(sector, len)| (sector, len.min(SECTORS - sector)));
    prop_oneof![
        4 => (range(), 1_u8..).prop_map(|((sector, sectors), byte)| Step::Write { sector, sectors, byte }),
        2 => range().prop_map(|(sector, sectors)| Step::Discard { sector, sectors }),
        2 => (range(), any::<bool>())
            .prop_map(|((sector, sectors), unmap)| Step::Zero { sector, sectors, unmap }),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #[test]
    fn a_disk_is_as_good_as_one_that_is_an_array(
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let mut disk = scratch();
        let mut model = contents(0, SECTORS * 512);
        let mut snapshot = model.clone();
        let bytes = |sector: u64, sectors: u64| {
            sector as usize * 512..(sector + sectors) as usize * 512
        };
        for step in steps {
            match step {
                Step::Write { sector, sectors, byte } => {
                    model[bytes(sector, sectors)].fill(byte);
                    prop_assert_eq!(disk.write(sector, &vec![byte; sectors as usize * 512]), 0);
                }
                Step::Discard { sector, sectors } => {
                    let end = sector + sectors;
                    let end = if end == SECTORS { end } else { end / 8 * 8 };
                    let start = sector.div_ceil(8) * 8;
                    if start < end {
                        model[bytes(start, end - start)].fill(0);
                    }
                    prop_assert_eq!(disk.segment(DISCARD, sector, sectors as u32, 0), 0);
                }
                Step::Zero { sector, sectors, unmap } => {
                    model[bytes(sector, sectors)].fill(0);
                    let flags = if unmap { UNMAP } else { 0 };
                    prop_assert_eq!(disk.segment(WRITE_ZEROES, sector, sectors as u32, flags), 0);
                }
                Step::Snapshot => {
                    snapshot.clone_from(&model);
                    let file = overlay(SECTORS * 512);
                    disk.driver.transport.device_mut().rebase(file).unwrap();
                }
                Step::Reset => {
                    model.clone_from(&snapshot);
                    disk.reset();
                    prop_assert_eq!(taken(&disk.overlay), 0);
                }
            }
            prop_assert_eq!(disk.read(0, SECTORS), model.clone());
        }
    }
}
