//! A real guest restored from a diff on another's snapshot.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use harness::{Cache, Shape, Snapshot, boot_and_snapshot, restored_from, snapshot};
use snapback_vmm::snapshot::layers::Layers;
use snapback_vmm::snapshot::memory::{self, CHUNK_LEN};
use snapback_vmm::sys::memfd;

fn copy_of(memory: &OwnedFd) -> File {
    memory.try_clone().unwrap().into()
}

/// A memory as one file.
fn composed(layers: &Layers) -> OwnedFd {
    let whole = memfd::create("composed", layers.len()).unwrap();
    let into = copy_of(&whole);
    let mut bytes = vec![0; usize::try_from(CHUNK_LEN).unwrap()];
    for offset in (0..layers.len()).step_by(bytes.len()) {
        layers.read_at(offset, &mut bytes).unwrap();
        into.write_all_at(&bytes, offset).unwrap();
    }
    whole
}

#[test]
fn a_guest_goes_on_from_a_diff_on_the_snapshot_of_another_boot() {
    let base = snapshot();
    let own = boot_and_snapshot(Shape::SMALL);
    let len = own.shape.memory();
    let below = Layers::whole(copy_of(&base.memory), len).unwrap();
    let file = tempfile::tempfile().unwrap();
    let diff = memory::write_diff(&copy_of(&own.memory), &below, &file, len).unwrap();
    let plain = memory::write(&copy_of(&own.memory), &tempfile::tempfile().unwrap(), len).unwrap();
    let (stored, whole) = (diff.memory.data_pages, plain.data_pages);
    println!(
        "{stored} pages stored instead of {whole}, {} differ, in {} runs",
        diff.map.pages(),
        diff.map.runs().len()
    );
    assert!(stored < whole);
    let layers = below.with(diff.map, file).unwrap();
    memory::verify(&layers, &plain.chunks).unwrap();

    let snapshot = Snapshot {
        memory: composed(&layers),
        ..own
    };
    let mut machine = restored_from(&snapshot, Cache::Warm);
    assert_eq!(machine.differences(), Vec::<String>::new());
    for _ in 0..2 {
        let answer = machine.request(r#"{"bytes": 3, "dirty": 100}"#);
        assert_eq!(answer, r#"{"calls": 1, "trace": 3}"#);
        machine.reset();
        assert_eq!(machine.differences(), Vec::<String>::new());
    }
}
