//! What a machine is given before its guest asks for it: pages that it will write, and a
//! whole place of them.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;

use std::os::fd::AsFd;

use harness::{Console, Shape, Snapshot, Vmm, boot_and_snapshot, snapshot, stream_pair, tell};
use snapback_proto::control::{Command, Devices, PageRun, Reply, Run};
use snapback_proto::frame::read_frame;
use snapback_proto::guest::GuestMessage;
use snapback_vmm::memory::{PageSet, Pagemap};

/// Pages of a memory that a machine gets ahead: some that its guest reads and writes, all
/// kinds of nonsense, and some twice.
fn ahead(memory: u64) -> Vec<PageRun> {
    let last = u32::try_from(memory / 4096).unwrap() - 1;
    let runs = [
        (0, 300),
        (200, 200),
        (last, 1),
        (last, 9),
        (last + 1, 1),
        (u32::MAX, 3),
    ];
    let run = |(first, pages)| PageRun { first, pages };
    runs.map(run).to_vec()
}

/// What these pages hold, one after the other; zeroes for those that are not there.
fn copies(memory: impl AsFd, runs: &[PageRun]) -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    let pages = runs.iter().flat_map(|run| {
        let first = u64::from(run.first);
        first..first + u64::from(run.pages)
    });
    for (place, page) in (0..).zip(pages) {
        let mut bytes = [0; 4096];
        rustix::io::pread(&memory, &mut bytes, page * 4096).unwrap();
        rustix::io::pwrite(&file, &bytes, place * 4096).unwrap();
    }
    file
}

#[test]
fn a_restore_that_lets_the_guest_run_takes_one_message_each_way() {
    for vcpus in [1, 3] {
        let snapshot = boot_and_snapshot(Shape {
            vcpus,
            ..Shape::SMALL
        });
        // Some of the written pages lie in the place that it gets as a whole.
        for whole in [None, Some(0)] {
            let (vmm, _console) = restored_and_resumed(&snapshot, whole);
            vmm.reset();
            assert_eq!(vmm.differences(), [""; 0], "{vcpus} vCPUs, {whole:?}");
        }
    }
}

/// A machine in its first life, whose guest has said that it goes on.
fn restored_and_resumed(snapshot: &Snapshot, whole: Option<u32>) -> (Vmm, Console) {
    let vmm = Vmm::start();
    // Nobody answers a fault: the memory is whole.
    let _pages = vmm.prepare(snapshot.shape);
    let (console, serial) = Console::new();
    let (memory, state, disks) = (&snapshot.memory, &snapshot.state, &snapshot.disks);
    let written = ahead(snapshot.shape.memory());
    let copies = copies(memory, &written);
    let command = Command::Restore {
        devices: Devices::read_only_disks(2),
        lazy: false,
        written,
        whole,
        run: Some(Run::default()),
    };
    let fds: [&dyn AsFd; 6] = [memory, state, &serial, &copies, &disks[0], &disks[1]];
    resumed_by(&vmm, &command, &fds);
    (vmm, console)
}

/// Lets the guest go by `command`, until it has said that it goes on.
fn resumed_by(vmm: &Vmm, command: &Command, fds: &[&dyn AsFd]) {
    // What the guest hears first waits for it.
    let (mut channel, theirs) = stream_pair();
    tell(&mut channel, 9);
    let mut fds = fds.to_vec();
    fds.push(&theirs);
    let (reply, _) = vmm.ask(command, &fds);
    assert!(
        matches!(reply, Reply::Running { entered_ns: 1.. }),
        "{reply:?}"
    );
    let (said, _) = read_frame::<GuestMessage>(&mut channel).unwrap();
    assert_eq!(said, GuestMessage::Resumed { generation: 9 });
}

#[test]
fn what_the_first_two_lives_write_is_hot_at_the_second_reset() {
    let (vmm, _console) = restored_and_resumed(snapshot(), None);
    let first = vmm.reset();
    assert_eq!(first.hot_pages, 0, "{first:?}");
    resumed_by(&vmm, &Command::Run(Run::default()), &[]);
    let second = vmm.reset();
    assert!(second.hot_pages * 2 > second.pages, "{second:?}");
    assert_eq!(vmm.differences(), [""; 0]);
}

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// A blank machine, and where its memory will lie.
fn blank() -> (Vmm, u64) {
    let vmm = Vmm::start();
    let (_, ranges) = vmm.prepare(Shape::SMALL);
    let address = ranges[0].address;
    (vmm, address)
}

/// Brings the small machine's snapshot, of which nothing is missing, to a blank one.
fn restore_whole(vmm: &Vmm, lazy: bool, whole: Option<u32>) -> Console {
    let (console, serial) = Console::new();
    let Snapshot {
        memory,
        state,
        disks,
        ..
    } = snapshot();
    let command = Command::Restore {
        devices: Devices::read_only_disks(2),
        lazy,
        written: Vec::new(),
        whole,
        run: None,
    };
    let fds: [&dyn AsFd; 5] = [memory, state, &serial, &disks[0], &disks[1]];
    assert_eq!(vmm.ask(&command, &fds).0, Reply::Restored);
    console
}

/// The place of a huge page of which a guest writes most until it has said that it goes on.
fn most_written() -> u32 {
    let (vmm, address) = blank();
    let _console = restore_whole(&vmm, false, None);
    resumed_by(&vmm, &Command::Run(Run::default()), &[]);
    let pagemap = Pagemap::of_process(vmm.child.id()).unwrap();
    let pages = HUGE / 4096;
    let written = |place: u32| {
        let mut own = PageSet::new([pages]);
        let address = address + u64::from(place) * HUGE as u64;
        pagemap.own_pages(address, pages, 0, &mut own).unwrap();
        let mut count = 0;
        own.each_run(|_, run| {
            count += run.len();
            Ok::<_, std::io::Error>(())
        })
        .unwrap();
        count
    };
    let most = (0..64).max_by_key(|place| written(*place)).unwrap();
    assert!(written(most) > 10, "{}", written(most));
    most
}

/// Huge pages in a file of `/proc/PID` like `smaps`, in KiB, from the line on that begins so.
fn huge_pages(vmm: &Vmm, file: &str, line: &str) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{}/{file}", vmm.child.id())).unwrap();
    let mut lines = maps.lines().skip_while(|next| !next.starts_with(line));
    let huge = lines.find_map(|line| line.strip_prefix("AnonHugePages:"));
    let size = huge.unwrap().trim().trim_end_matches(" kB");
    size.parse().unwrap()
}

#[test]
fn a_place_that_is_a_machines_own_as_a_whole_is_put_back_like_all_memory() {
    let place = most_written();
    let content = || {
        let mut bytes = vec![0; HUGE];
        let at = u64::from(place) * HUGE as u64;
        rustix::io::pread(&snapshot().memory, &mut bytes, at).unwrap();
        bytes
    };
    let before = content();
    let (vmm, address) = blank();
    let _console = restore_whole(&vmm, false, Some(place));
    let begin = format!("{:x}-", address + u64::from(place) * HUGE as u64);
    assert_eq!(huge_pages(&vmm, "smaps", &begin), 2048);
    assert_eq!(vmm.differences(), [""; 0], "right after the restore");
    let (vmm, _console) = restored_and_resumed(snapshot(), Some(place));
    let first = vmm.reset();
    assert!(first.pages >= 512, "all of the place: {first:?}");
    assert_eq!(vmm.differences(), [""; 0], "{first:?}");
    for _ in 0..2 {
        resumed_by(&vmm, &Command::Run(Run::default()), &[]);
        let later = vmm.reset();
        assert!(later.pages < 512, "what the guest wrote: {later:?}");
        assert_eq!(vmm.differences(), [""; 0], "{later:?}");
    }
    assert!(content() == before, "the snapshot's own memory");
}

#[test]
fn a_huge_page_that_is_not_needed_is_given_back_once_the_guest_is_entered() {
    // No place, two that are not there, and one of a memory that may lack pages.
    let cases = [
        (false, None),
        (false, Some(64)),
        (false, Some(u32::MAX)),
        (true, Some(0)),
    ];
    for (lazy, whole) in cases {
        if lazy {
            harness::fill_holes(&snapshot().memory, Shape::SMALL);
        }
        let (vmm, _) = blank();
        let huge = || huge_pages(&vmm, "smaps_rollup", "");
        let prepared = huge();
        let _console = restore_whole(&vmm, lazy, whole);
        assert_eq!(huge(), prepared, "{lazy}, {whole:?}: not before");
        assert_eq!(vmm.differences(), [""; 0], "{lazy}, {whole:?}");
        resumed_by(&vmm, &Command::Run(Run::default()), &[]);
        // The reply comes first.
        let soon = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            huge() + 2048 == prepared
        });
        assert!(soon, "{lazy}, {whole:?}: {} of {prepared} KiB", huge());
    }
}

#[test]
fn copies_of_pages_that_are_not_all_there_are_refused() {
    let snapshot = snapshot();
    let vmm = Vmm::start();
    let _pages = vmm.prepare(snapshot.shape);
    let (_console, serial) = Console::new();
    let (memory, state, disks) = (&snapshot.memory, &snapshot.state, &snapshot.disks);
    let copies = tempfile::tempfile().unwrap();
    copies.set_len(4096 + 4095).unwrap();
    let fds: [&dyn AsFd; 6] = [memory, state, &serial, &copies, &disks[0], &disks[1]];
    let command = Command::Restore {
        devices: Devices::read_only_disks(2),
        lazy: false,
        written: vec![PageRun { first: 3, pages: 2 }],
        whole: None,
        run: None,
    };
    let (reply, _) = vmm.ask(&command, &fds);
    let Reply::Failed(failure) = reply else {
        panic!("{reply:?}");
    };
    assert!(failure.reason.contains("copies of pages"), "{failure:?}");
}
