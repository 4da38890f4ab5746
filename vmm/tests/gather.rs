//! A guest that goes on from its snapshot, moves its pages, and is snapshotted anew.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use harness::{
    Cache, Console, Shape, Snapshot, Vmm, boot_and_snapshot, restored_from, snapshot, stream_pair,
};
use snapback_proto::control::{Command, Devices, FaultRange, Reply};
use snapback_proto::frame::{read_frame, write_frame};
use snapback_proto::guest::{Gather, GuestMessage, HostMessage};
use snapback_vmm::memory::{PageSet, Pagemap};
use snapback_vmm::sys::memfd;

const PAGE: u64 = 4096;
/// Pages of a huge page.
const PLACE: u32 = 512;

/// The pages that a first life has written when its guest has answered a request.
fn written_in(snapshot: &Snapshot) -> Vec<u32> {
    let mut machine = restored_from(snapshot, Cache::Warm);
    assert_eq!(machine.request("{}"), r#"{"calls": 1, "trace": 1}"#);
    own_pages(machine.vmm.child.id(), &machine.ranges)
}

fn own_pages(pid: u32, ranges: &[FaultRange]) -> Vec<u32> {
    let pagemap = Pagemap::of_process(pid).unwrap();
    let mut all = Vec::new();
    for range in ranges {
        let pages = usize::try_from(range.length / PAGE).unwrap();
        let mut set = PageSet::new([pages]);
        pagemap
            .own_pages(range.address, pages, 0, &mut set)
            .unwrap();
        let first = usize::try_from(range.offset / PAGE).unwrap();
        let run = |_, run: std::ops::Range<usize>| {
            all.extend(run.map(|page| u32::try_from(first + page).unwrap()));
            Ok::<_, std::io::Error>(())
        };
        set.each_run(run).unwrap();
    }
    all
}

/// Has the guest of a snapshot move what it writes; how many pages it moved, and its next
/// snapshot.
fn gathered(snapshot: &Snapshot, written: &[u32]) -> (u32, Snapshot) {
    let written = written.to_vec();
    gathered_as(
        snapshot,
        Gather {
            written,
            read: vec![],
        },
    )
}

fn gathered_as(snapshot: &Snapshot, pages: Gather) -> (u32, Snapshot) {
    let vmm = Vmm::start();
    let _pages = vmm.prepare(snapshot.shape);
    let (_console, serial) = Console::new();
    let memory = copy(snapshot);
    let (state, disks) = (&snapshot.state, &snapshot.disks);
    let (mut channel, theirs) = stream_pair();
    let command = Command::Continue {
        devices: Devices::read_only_disks(2),
    };
    let fds: [&dyn AsFd; 6] = [&memory, state, &serial, &theirs, &disks[0], &disks[1]];
    assert_eq!(vmm.ask(&command, &fds).0, Reply::Booted);
    write_frame(&mut channel, &HostMessage::Gather(pages), b"").unwrap();
    let (said, _) = read_frame::<GuestMessage>(&mut channel).unwrap();
    let GuestMessage::Gathered { moved } = said else {
        panic!("{said:?}");
    };
    let state = tempfile::tempfile().unwrap();
    let (reply, _) = vmm.ask(&Command::Snapshot, &[&state]);
    assert!(matches!(reply, Reply::Snapshotted { .. }), "{reply:?}");
    let next = Snapshot {
        shape: snapshot.shape,
        state,
        memory,
        disks: [0, 1].map(|disk| snapshot.disks[disk].try_clone().unwrap()),
        scratch: Vec::new(),
    };
    (moved, next)
}

fn copy(snapshot: &Snapshot) -> std::os::fd::OwnedFd {
    let len = snapshot.shape.memory();
    let copy = memfd::create("copy", len).unwrap();
    let mut bytes = vec![0; 1 << 20];
    for at in (0..len).step_by(bytes.len()) {
        rustix::io::pread(&snapshot.memory, &mut bytes, at).unwrap();
        if bytes.iter().any(|byte| *byte != 0) {
            rustix::io::pwrite(&copy, &bytes, at).unwrap();
        }
    }
    copy
}

/// How many of the pages lie in each place that has some, the fewest first.
fn by_place(pages: &[u32]) -> Vec<usize> {
    let mut places = BTreeMap::<u32, usize>::new();
    for page in pages {
        *places.entry(page / PLACE).or_default() += 1;
    }
    let mut counts: Vec<_> = places.into_values().collect();
    counts.sort_unstable();
    counts
}

#[test]
fn a_guest_that_has_moved_its_pages_serves_and_is_put_back_as_before() {
    let before = written_in(snapshot());
    let (moved, next) = gathered(snapshot(), &before);
    assert!(moved >= 50, "{moved} of {}", before.len());
    let mut machine = restored_from(&next, Cache::Warm);
    for _ in 0..3 {
        let answer = machine.request(r#"{"dirty": 100}"#);
        assert_eq!(answer, r#"{"calls": 1, "trace": 1}"#);
        machine.reset();
        assert_eq!(machine.differences(), Vec::<String>::new());
    }
    // And lies together what lay scattered.
    let after = written_in(&next);
    let most = |pages: &[u32]| by_place(pages).last().copied().unwrap_or(0);
    let (was, is) = (most(&before), most(&after));
    println!(
        "{moved} of {} moved: {was} in one place before, {is} after",
        before.len()
    );
    assert!(is >= was && is >= usize::try_from(moved).unwrap() * 3 / 4);
    // The snapshot that it came from is as it was.
    let mut first = restored_from(snapshot(), Cache::Warm);
    assert_eq!(first.request("{}"), r#"{"calls": 1, "trace": 1}"#);
}

#[test]
fn a_guest_can_move_its_pages_with_several_processors_and_more_than_once() {
    let first = boot_and_snapshot(Shape {
        vcpus: 3,
        memory_mib: 192,
        ..Shape::SMALL
    });
    let (moved, second) = gathered(&first, &written_in(&first));
    assert!(moved > 0);
    let (_, third) = gathered(&second, &written_in(&second));
    let mut machine = restored_from(&third, Cache::Warm);
    assert_eq!(machine.request("{}"), r#"{"calls": 1, "trace": 1}"#);
    machine.reset();
    assert_eq!(machine.differences(), Vec::<String>::new());
}

#[test]
fn what_is_only_read_is_moved_apart_from_what_is_written() {
    let all = written_in(snapshot());
    let (written, read) = all.split_at(all.len() / 2);
    let pages = Gather {
        written: written.to_vec(),
        read: read.to_vec(),
    };
    let (moved, next) = gathered_as(snapshot(), pages);
    let after = written_in(&next);
    // Each half has a place, and in none is all that was moved.
    let moved = usize::try_from(moved).unwrap();
    let counts = by_place(&after);
    println!("{moved} moved: {counts:?}");
    let [.., second, first] = counts[..] else {
        panic!("{counts:?}");
    };
    assert!(moved >= 50 && first < moved && second >= moved / 4);
}

#[test]
fn whatever_pages_are_named_the_guest_lives() {
    let kernel: Vec<u32> = (4096..6144).collect();
    let bad = vec![u32::MAX, u32::MAX - 1, 0, 1, 1, 32767, 32768, 1 << 20];
    let all: Vec<u32> = (0..4096).map(|page| page * 8).collect();
    for pages in [vec![], kernel, bad, all] {
        let (written, read) = (pages.clone(), pages.clone());
        let (moved, next) = gathered_as(snapshot(), Gather { written, read });
        println!("{moved} of twice {} moved", pages.len());
        let mut machine = restored_from(&next, Cache::Warm);
        assert_eq!(machine.request("{}"), r#"{"calls": 1, "trace": 1}"#);
    }
}

#[test]
fn a_function_can_have_no_pages_moved() {
    let mut machine = restored_from(snapshot(), Cache::Warm);
    let found = machine.look(
        "[__import__('os').path.exists('/proc/gather')] + \
         [__import__('os').access('/proc/gather', way) for way in (2, 4)]",
    );
    assert_eq!(found, "[True, False, False]");
}
