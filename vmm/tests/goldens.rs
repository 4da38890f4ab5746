//! Golden snapshots: made once, by an earlier build, and restored by every later one.
//! One that is missing is a failure; so is one that this build would not restore.
//!
//! ```text
//!  tests/goldens/<name>/snapshot.json   as in any snapshot
//!                       state
//!                       memory-map      of a diff
//!                       memory.packed   the memory file's data: offset (u64) · length (u32)
//!                                       · bytes, again and again
//! ```
//!
//! `SNAPBACK_BLESS=1 cargo xtask test goldens` makes them anew. That is right when
//! nothing was released with the old ones; else a golden is added, and none removed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;
mod tiny;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use harness::Shape;
use snapback_proto::control::{Command, Reply};
use snapback_proto::cpu::CpuTemplate;
use snapback_vmm::arch::x86_64::{features, template};
use snapback_vmm::memory::layout::MIN_MIB;
use snapback_vmm::snapshot::layers::Layers;
use snapback_vmm::snapshot::manifest::{
    Base, Cpu, FILE_NAME, FileDigest, MANIFEST_VERSION, MEMORY_FILE_NAME, Machine, Manifest,
    Memory, STATE_FILE_NAME,
};
use snapback_vmm::snapshot::memory::{self, CHUNK_LEN};
use snapback_vmm::snapshot::page_map::{self, PageMap};
use snapback_vmm::snapshot::{Digest, StateReader};
use snapback_vmm::supervisor::Saved;
use snapback_vmm::sys::memfd;
use tiny::{Running, Tiny};

/// A golden, with the guest that is in it.
struct Golden {
    name: &'static str,
    base: Option<&'static str>,
    guest: Tiny,
}

/// One for each shape of the format. All of a template, so that any host restores them.
const GOLDENS: [Golden; 3] = [
    golden("v1-one-vcpu", None, 1, 0),
    golden("v1-two-vcpus", None, 2, 0),
    golden("v1-diff", Some("v1-one-vcpu"), 1, 4),
];

const fn golden(name: &'static str, base: Option<&'static str>, vcpus: u8, counter: u8) -> Golden {
    Golden {
        name,
        base,
        guest: Tiny {
            shape: Shape {
                memory_mib: MIN_MIB,
                vcpus,
                template: CpuTemplate::V2,
            },
            counter,
            msr: None,
        },
    }
}

/// The largest one that is worth its place in the repository, in bytes.
const LARGEST: u64 = 64 * 1024;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens")
}

fn read(name: &str, file: &str) -> Vec<u8> {
    let path = folder().join(name).join(file);
    fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "{} ({error}): a golden must stay; SNAPBACK_BLESS=1 makes it anew",
            path.display()
        )
    })
}

#[test]
fn goldens_of_every_format_are_restored_and_do_what_they_did() {
    if std::env::var_os("SNAPBACK_BLESS").is_some() {
        GOLDENS.iter().for_each(bless);
    }
    for golden in &GOLDENS {
        let (memory, state) = unpack(golden);
        let mut running = Running::restore(golden.guest.shape, memory, &state);
        for life in 0..3 {
            let (reply, _) = running.vmm.ask(&Command::Verify, &[]);
            let Reply::Verified { differences } = reply else {
                panic!("{}: {reply:?}", golden.name);
            };
            assert_eq!(differences, Vec::<String>::new(), "{}", golden.name);
            assert_eq!(
                running.wake(),
                golden.guest.line(),
                "{}, {life}",
                golden.name
            );
            let (reply, _) = running.vmm.ask(&Command::RESET, &[]);
            assert!(matches!(reply, Reply::Reset(_)), "{reply:?}");
        }
    }
}

/// A golden's memory and state, checked as an import does.
fn unpack(golden: &Golden) -> (OwnedFd, File) {
    let name = golden.name;
    let size: u64 = fs::read_dir(folder().join(name))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size <= LARGEST, "{name} has {size} bytes");
    let manifest = Manifest::from_json(&read(name, FILE_NAME)).unwrap();
    let state = read(name, STATE_FILE_NAME);
    assert_eq!(digest_of(&state), manifest.state, "{name}");
    StateReader::from_bytes(state.clone()).unwrap();
    let state = tiny::content(&state);
    let saved = Saved::load(&state).unwrap();
    assert_eq!(features::names(&saved.cpuid), manifest.cpu.features);

    let layers = layers(name, &manifest);
    memory::verify(&layers, &manifest.memory.chunks).unwrap();
    let memfd = memfd::create("golden", manifest.memory.len).unwrap();
    let into = File::from(memfd.try_clone().unwrap());
    let mut bytes = vec![0; usize::try_from(CHUNK_LEN).unwrap()];
    for offset in (0..manifest.memory.len).step_by(bytes.len()) {
        layers.read_at(offset, &mut bytes).unwrap();
        into.write_all_at(&bytes, offset).unwrap();
    }
    (memfd, state)
}

fn layers(name: &str, manifest: &Manifest) -> Layers {
    let len = manifest.memory.len;
    let packed = read(name, "memory.packed");
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    let mut rest = &packed[..];
    while !rest.is_empty() {
        let (mut offset, mut length) = ([0; 8], [0; 4]);
        rest.read_exact(&mut offset).unwrap();
        rest.read_exact(&mut length).unwrap();
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap();
        let (bytes, more) = rest.split_at(length);
        file.write_all_at(bytes, u64::from_le_bytes(offset))
            .unwrap();
        rest = more;
    }
    let Some(base) = &manifest.base else {
        return Layers::whole(file, len).unwrap();
    };
    let below = read(base.snapshot_id.as_str(), FILE_NAME);
    assert_eq!(Digest::of(&below), base.manifest, "{name}");
    let below = Manifest::from_json(&below).unwrap();
    let map = read(name, page_map::FILE_NAME);
    assert_eq!(digest_of(&map), base.map, "{name}");
    let map = PageMap::from_bytes(&map, len / 4096).unwrap();
    layers(base.snapshot_id.as_str(), &below)
        .with(map, file)
        .unwrap()
}

fn digest_of(bytes: &[u8]) -> FileDigest {
    FileDigest {
        len: u64::try_from(bytes.len()).unwrap(),
        hash: Digest::of(bytes),
    }
}

fn bless(golden: &Golden) {
    let place = folder().join(golden.name);
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(place.join(name), bytes).unwrap();
    let (guest, state) = golden.guest.snapshot();
    let saved = Saved::load(&state).unwrap();
    let mut bytes = vec![0; usize::try_from(state.metadata().unwrap().len()).unwrap()];
    state.read_exact_at(&mut bytes, 0).unwrap();
    write(STATE_FILE_NAME, &bytes);

    let Shape {
        memory_mib,
        vcpus,
        template,
    } = golden.guest.shape;
    let len = golden.guest.shape.memory();
    let file = tempfile::tempfile().unwrap();
    let (chunks, base) = match golden.base {
        None => (
            memory::write(&guest.into(), &file, len).unwrap().chunks,
            None,
        ),
        Some(name) => {
            let below = read(name, FILE_NAME);
            let layers = layers(name, &Manifest::from_json(&below).unwrap());
            let diff = memory::write_diff(&guest.into(), &layers, &file, len).unwrap();
            let map = diff.map.to_bytes();
            write(page_map::FILE_NAME, &map);
            let base = Base {
                snapshot_id: name.parse().unwrap(),
                manifest: Digest::of(&below),
                map: digest_of(&map),
            };
            (diff.memory.chunks, Some(base))
        }
    };
    write(&format!("{MEMORY_FILE_NAME}.packed"), &packed(&file, len));
    let none = Digest::of(b"");
    let manifest = Manifest {
        format_version: MANIFEST_VERSION,
        snapshot_id: golden.name.parse().unwrap(),
        created_unix_ms: 0,
        function: "golden".parse().unwrap(),
        machine: Machine {
            memory_mib,
            vcpus,
            template,
        },
        cpu: Cpu {
            vendor: template::vendor(&saved.cpuid),
            features: features::names(&saved.cpuid),
        },
        kernel: none,
        root_fs: none,
        code: none,
        guest_init: none,
        state: digest_of(&bytes),
        memory: Memory {
            len,
            chunk_len: CHUNK_LEN,
            chunks,
        },
        base,
        gathered: false,
    };
    write(FILE_NAME, &manifest.to_json().unwrap());
}

/// The stretches of a file that are not zero.
fn packed(file: &File, len: u64) -> Vec<u8> {
    const GRAIN: usize = 16;
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let mut packed = Vec::new();
    let grains = bytes.chunks(GRAIN).enumerate();
    let mut runs: Vec<(usize, Vec<u8>)> = Vec::new();
    for (at, grain) in grains.filter(|(_, grain)| grain.iter().any(|byte| *byte != 0)) {
        match runs.last_mut() {
            Some((start, run)) if *start + run.len() == at * GRAIN => run.extend(grain),
            _ => runs.push((at * GRAIN, grain.to_vec())),
        }
    }
    for (start, run) in runs {
        packed.extend(u64::try_from(start).unwrap().to_le_bytes());
        packed.extend(u32::try_from(run.len()).unwrap().to_le_bytes());
        packed.extend(run);
    }
    packed
}
