//! Scratch disks under a real guest: what it writes is there until the reset and never
//! longer, and what fails is an I/O error to it.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::sync::OnceLock;

use harness::{
    Cache, Extra, Scratch, Shape, Snapshot, TestMachine, begin, boot_root_with, restored_with,
    result_of,
};
use serde_json::json;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// Most that the overlay of the second scratch disk may take up.
const SMALL: u64 = MIB;

/// A base with a letter for each MiB of its beginning.
fn base() -> File {
    let file = tempfile::tempfile().unwrap();
    for (at, letter) in (0..).zip(b'a'..=b'h') {
        file.write_all_at(&vec![letter; 1 << 20], at * MIB).unwrap();
    }
    file.set_len(SIZE).unwrap();
    file
}

fn scratch(bases: [&File; 2]) -> [Scratch; 2] {
    [
        Scratch::over(bases[0], SIZE),
        Scratch::over(bases[1], SMALL),
    ]
}

/// Looks past the page cache: what the disk says is what the test sees.
const TOOLS: &str = r#"
import fcntl, mmap

def read(disk, at, length):
    page = mmap.mmap(-1, -(-length // 512) * 512)
    fd = os.open("/dev/" + disk, os.O_RDONLY | os.O_DIRECT)
    try:
        return page[:os.preadv(fd, [page], at)][:length]
    finally:
        os.close(fd)

def write(disk, at, data):
    page = mmap.mmap(-1, len(data))
    page[:] = data
    fd = os.open("/dev/" + disk, os.O_WRONLY | os.O_DIRECT)
    try:
        assert os.pwritev(fd, [page], at) == len(data)
    finally:
        os.close(fd)

BLKDISCARD, BLKZEROOUT = 0x1277, 0x127f

def on_range(request, disk, at, length):
    fd = os.open("/dev/" + disk, os.O_WRONLY)
    try:
        fcntl.ioctl(fd, request, struct.pack("QQ", at, length))
    finally:
        os.close(fd)

def errno_of(work, *arguments):
    try:
        work(*arguments)
    except OSError as error:
        return error.errno
"#;

/// The guest of all tests: before its snapshot it wrote to its first scratch disk.
fn snapshot() -> &'static Snapshot {
    static SNAPSHOT: OnceLock<Snapshot> = OnceLock::new();
    SNAPSHOT.get_or_init(|| {
        let (first, second) = (base(), base());
        let disks = scratch([&first, &second]);
        let booted = boot_root_with(Shape::SMALL, &with(&disks));
        let wrote = "write('vdc', 5000 * 512, b'S' * 8192)
on_range(BLKDISCARD, 'vdc', 0, 1 << 20)";
        result_of(&booted.channel, &format!("{TOOLS}\n{wrote}"));
        booted.snapshot()
    })
}

fn restored(disks: &[Scratch]) -> TestMachine {
    restored_with(snapshot(), Cache::Warm, &with(disks))
}

/// The disks of one life of the snapshot.
fn own_disks() -> [Scratch; 2] {
    scratch([&snapshot().scratch[0], &snapshot().scratch[1]])
}

fn with(disks: &[Scratch]) -> Extra<'_> {
    Extra {
        scratch: disks,
        ..Extra::default()
    }
}

fn taken(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

/// What the first scratch disk held at the snapshot, in the guest's words.
const AT_SNAPSHOT: &str = "result = [read('vdc', 5000 * 512, 8192) == b'S' * 8192, \
     read('vdc', 0, 4096) == bytes(4096), read('vdc', 1 << 20, 2) == b'bb', \
     read('vdc', 63 << 20, 4096) == bytes(4096)]";

#[test]
fn a_disk_holds_what_it_held_at_the_snapshot_and_never_more() {
    let disks = own_disks();
    let held = snapshot();
    // The snapshot's disk is the base with what was written over it.
    let mut bytes = vec![0; 8192];
    held.scratch[0]
        .read_exact_at(&mut bytes, 5000 * 512)
        .unwrap();
    assert_eq!(bytes, [b'S'; 8192]);
    assert!(taken(&held.scratch[0]) <= 8 * MIB, "a hole stays a hole");
    let machine = restored(&disks);
    assert_eq!(machine.differences(), Vec::<String>::new());
    for round in 0..3 {
        let guest = machine.run();
        let expected = json!([true, true, true, true]);
        assert_eq!(result_of(&guest, AT_SNAPSHOT), expected, "round {round}");
        let wrote = result_of(
            &guest,
            "for at in range(0, 8 << 20, 1 << 18): write('vdc', at + 512, b'w' * 65536)
write('vdc', 5000 * 512, b'X' * 512)
fd = os.open('/dev/vdc', os.O_RDWR)
os.pwrite(fd, b'cached', 40 << 20); os.fsync(fd); os.close(fd)
on_range(BLKZEROOUT, 'vdc', 3 << 20, 1 << 20)
write('vdd', 0, b'second' * 512)
result = [read('vdc', 512, 65536) == b'w' * 65536, read('vdc', 0, 512) == bytes(512),
    read('vdc', 5000 * 512, 1024) == b'X' * 512 + b'S' * 512,
    read('vdc', 40 << 20, 512) == b'cached' + bytes(506),
    read('vdc', 3 << 20, 1 << 20) == bytes(1 << 20), read('vdd', 0, 6).decode()]",
        );
        assert_eq!(wrote, json!([true, true, true, true, true, "second"]));
        assert!(taken(&disks[0].overlay) > MIB);
        println!("{:?}", machine.reset());
        assert_eq!(machine.differences(), Vec::<String>::new());
        assert_eq!(
            [&disks[0], &disks[1]].map(|disk| taken(&disk.overlay)),
            [0, 0]
        );
    }
}

#[test]
fn a_reset_in_the_middle_of_writes_is_complete() {
    let disks = own_disks();
    let machine = restored(&disks);
    for round in 0..3 {
        let guest = machine.run();
        begin(
            &guest,
            "for n in range(1 << 30): write('vdc', (n % 100) << 18, b'w' * 65536)",
        );
        while taken(&disks[0].overlay) == 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        machine.reset();
        assert_eq!(machine.differences(), Vec::<String>::new(), "{round}");
        assert_eq!(taken(&disks[0].overlay), 0, "{round}");
    }
    let guest = machine.run();
    assert_eq!(
        result_of(&guest, AT_SNAPSHOT),
        json!([true, true, true, true])
    );
}

#[test]
fn a_discard_frees_what_the_disk_takes_up() {
    let disks = own_disks();
    let machine = restored(&disks);
    let guest = machine.run();
    result_of(&guest, "write('vdc', 8 << 20, b'd' * (1 << 20))");
    assert_eq!(taken(&disks[0].overlay), MIB);
    let read = result_of(
        &guest,
        "on_range(BLKDISCARD, 'vdc', 8 << 20, 1 << 19); \
         result = read('vdc', 8 << 20, 1 << 20) == bytes(1 << 19) + b'd' * (1 << 19)",
    );
    assert_eq!(read, json!(true));
    assert_eq!(taken(&disks[0].overlay), MIB / 2);
    // The limit is for what is taken up: the disk can be written over and over.
    let errors = result_of(
        &guest,
        "result = []
for n in range(4):
    result.append(errno_of(write, 'vdd', n << 20, b'x' * (1 << 20)))
    on_range(BLKDISCARD, 'vdd', n << 20, 1 << 20)",
    );
    assert_eq!(errors, json!([null, null, null, null]));
    assert_eq!(taken(&disks[1].overlay), 0);
}

const EIO: i32 = 5;

#[test]
fn what_fails_on_the_host_is_an_io_error_to_the_guest() {
    let disks = own_disks();
    let machine = restored(&disks);
    let guest = machine.run();
    // Over the limit: nothing more is taken up, and what is there stays.
    let over = result_of(&guest, "result = [errno_of(write, 'vdd', 0, b'x' * (1 << 20)),
    errno_of(write, 'vdd', 2 << 20, b'y' * 512), read('vdd', 0, 2).decode(),
    read('vdd', 2 << 20, 2).decode(), errno_of(write, 'vdd', 0, b'z' * 512), read('vdd', 0, 1).decode()]",
    );
    assert_eq!(over, json!([null, EIO, "xx", "cc", null, "z"]));
    assert_eq!(taken(&disks[1].overlay), SMALL);
    drop(machine);

    // The host's file system is full, and a base is cut off.
    let directory = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        let done = Command::new("mount").args(arguments).status();
        assert!(done.unwrap().success());
    };
    let place = directory.path().to_str().unwrap();
    mount(&["-t", "tmpfs", "-o", "size=256k", "none", place]);
    let overlay = File::create_new(directory.path().join("overlay")).unwrap();
    overlay.set_len(SIZE).unwrap();
    let mut short = std::io::Read::take(&snapshot().scratch[1], u64::MAX);
    let cut = tempfile::tempfile().unwrap();
    std::io::copy(&mut short, &mut &cut).unwrap();
    cut.set_len(SIZE).unwrap();
    let disks = [
        Scratch {
            base: snapshot().scratch[0].try_clone().unwrap(),
            overlay: File::options()
                .read(true)
                .write(true)
                .open(directory.path().join("overlay"))
                .unwrap(),
            limit: SIZE,
        },
        Scratch::over(&cut, SIZE),
    ];
    let machine = restored(&disks);
    cut.set_len(4 * MIB).unwrap();
    for round in 0..2 {
        let guest = machine.run();
        let failed = result_of(&guest, "result = [errno_of(write, 'vdc', 0, b'x' * 65536), errno_of(write, 'vdc', 8 << 20, b'y' * (1 << 20)),
    errno_of(write, 'vdc', 0, b'z' * 512), read('vdc', 0, 1024) == b'z' * 512 + b'x' * 512,
    read('vdc', 1 << 20, 1).decode(), errno_of(read, 'vdd', 5 << 20, 4096), read('vdd', 3 << 20, 1).decode(),
    errno_of(write, 'vdd', 5 << 20, b'n' * 512), errno_of(write, 'vdd', 5 << 20, b'n' * 4096),
    read('vdd', 5 << 20, 1).decode()]",
        );
        let expected = json!([null, EIO, null, true, "b", EIO, "d", EIO, null, "n"]);
        assert_eq!(failed, expected, "round {round}");
        machine.reset();
        assert_eq!(machine.differences(), Vec::<String>::new());
    }
    drop((machine, disks, overlay));
    let done = Command::new("umount").arg(place).status();
    assert!(done.unwrap().success());
}

#[test]
fn disks_are_told_apart_and_say_what_they_can() {
    let disks = own_disks();
    let machine = restored(&disks);
    let guest = machine.run();
    let told = result_of(&guest, "get = lambda disk, name: open(f'/sys/block/{disk}/{name}').read().strip()
result = [[get(disk, name) for name in ('serial', 'ro', 'size', 'queue/discard_granularity', 'queue/physical_block_size',
    'queue/write_cache')] for disk in ('vda', 'vdc', 'vdd')]
result[0][2] = None",
    );
    let sectors = (SIZE / 512).to_string();
    let scratch = |serial| json!([serial, "0", sectors, "4096", "4096", "write back"]);
    assert_eq!(
        told,
        json!([
            ["snapback-disk-0", "1", null, "0", "512", "write through"],
            scratch("snapback-disk-2"),
            scratch("snapback-disk-3")
        ])
    );
    // Read-only is read-only.
    let refused = result_of(
        &guest,
        "result = errno_of(write, 'vda', 0, b'x' * 512) is not None",
    );
    assert_eq!(refused, json!(true));
}
