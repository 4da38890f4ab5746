//! A snapshot that environments are restored from.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapback_vmm::arch::x86_64::cpuid::{self, CpuidEntryV1};
use snapback_vmm::arch::x86_64::features;
use snapback_vmm::arch::x86_64::template::{self, Lacks};
use snapback_vmm::snapshot::Digest;
use snapback_vmm::snapshot::format::MAX_STATE_LEN;
use snapback_vmm::snapshot::manifest::{
    MEMORY_FILE_NAME, Machine, Manifest, STATE_FILE_NAME, SnapshotId,
};
use snapback_vmm::sys::memfd;

use super::checked::CheckedMemory;
use super::error::SnapshotError;
use super::files::SnapshotFiles;
use super::hints::Hints;
use crate::pager::{Completion, MemoryCache};

/// The images a snapshot's guest has as disks, in their order: root file system,
/// code.
#[derive(Debug, Clone)]
pub struct Disks {
    /// The root file system's image and its hash.
    pub root_fs: (PathBuf, Digest),
    /// The code's image and its hash.
    pub code: (PathBuf, Digest),
}

impl Disks {
    /// How many there are.
    pub const COUNT: u8 = 2;

    /// Opens both for reading.
    ///
    /// # Errors
    /// Names the one that cannot be opened.
    pub fn open(&self) -> Result<Vec<File>, SnapshotError> {
        [&self.root_fs.0, &self.code.0]
            .into_iter()
            .map(|path| File::open(path).map_err(SnapshotError::io("opening", path)))
            .collect()
    }
}

/// A verified snapshot with its memory on this host.
#[derive(Debug)]
pub struct Snapshot {
    id: SnapshotId,
    machine: Machine,
    memory: Arc<MemoryCache>,
    state: OwnedFd,
    disks: Vec<File>,
    pub(super) hints: Hints,
}

impl Snapshot {
    /// Takes a snapshot that was checked.
    pub(super) fn new(
        manifest: &Manifest,
        directory: &Path,
        memory: MemoryCache,
        disks: Vec<File>,
        hints: Hints,
    ) -> Result<Arc<Self>, SnapshotError> {
        if manifest.gathered {
            hints.settle();
        }
        Ok(Arc::new(Self {
            id: manifest.snapshot_id.clone(),
            machine: manifest.machine,
            memory: Arc::new(memory),
            state: keep_state(manifest, directory)?,
            disks,
            hints,
        }))
    }

    /// Reads a snapshot from its directory and checks all of it.
    pub(super) fn load(
        id: &SnapshotId,
        directory: &Path,
        disks: &Disks,
        window: u64,
    ) -> Result<Arc<Self>, SnapshotError> {
        let files = SnapshotFiles::open(directory)?;
        let manifest = files.manifest();
        if manifest.snapshot_id != *id {
            let found = manifest.snapshot_id.clone();
            return Err(SnapshotError::OtherId {
                id: id.clone(),
                found,
            });
        }
        check_images(manifest, disks)?;
        let host = cpuid::of_this_host(manifest.machine.vcpus).map_err(SnapshotError::Host)?;
        check_features(manifest, &host)?;
        let saved = files.state()?;
        let machine = manifest.machine;
        template::check(machine.template, &saved.cpuid, &host, machine.vcpus).map_err(
            |source| SnapshotError::Processor {
                id: id.clone(),
                source,
            },
        )?;
        let sums = files.check_memory()?;
        let path = directory.join(MEMORY_FILE_NAME);
        let len = manifest.memory.len;
        let source = CheckedMemory::new(files.memory().clone(), sums);
        let cache = MemoryCache::cold(len, Box::new(source), window)
            .map_err(SnapshotError::io("caching", &path))?;
        let hints = Hints::read(directory.to_owned(), len);
        Self::new(manifest, directory, cache, disks.open()?, hints)
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> &SnapshotId {
        &self.id
    }

    /// The shape of its machine.
    #[must_use]
    pub const fn machine(&self) -> Machine {
        self.machine
    }

    /// Its memory.
    #[must_use]
    pub const fn memory(&self) -> &Arc<MemoryCache> {
        &self.memory
    }

    /// Brings all of its memory. Takes a while: not for a task.
    ///
    /// # Errors
    /// When a page cannot be had.
    pub fn complete(&self) -> Result<(), SnapshotError> {
        Completion::of(Arc::clone(&self.memory))
            .finish()
            .map_err(|source| SnapshotError::Fill {
                id: self.id.clone(),
                source,
            })
    }

    /// Its disks, in order.
    #[must_use]
    pub fn disks(&self) -> &[File] {
        &self.disks
    }

    /// Its state: a file that was checked and that nobody can change.
    #[must_use]
    pub fn state(&self) -> BorrowedFd<'_> {
        self.state.as_fd()
    }
}

/// Copies the state to where nobody can change it, and checks that it is the one
/// that was written: from then on, no restore checks its hashes.
fn keep_state(manifest: &Manifest, directory: &Path) -> Result<OwnedFd, SnapshotError> {
    let path = directory.join(STATE_FILE_NAME);
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_STATE_LEN + 1).read_to_end(&mut bytes))
        .map_err(SnapshotError::io("reading", &path))?;
    if Digest::of(&bytes) != manifest.state.hash {
        return Err(SnapshotError::OtherState {
            id: manifest.snapshot_id.clone(),
        });
    }
    memfd::sealed("snapback-state", &bytes).map_err(SnapshotError::io("keeping", &path))
}

fn check_images(manifest: &Manifest, disks: &Disks) -> Result<(), SnapshotError> {
    let images = [
        ("root file system", manifest.root_fs, disks.root_fs.1),
        ("code", manifest.code, disks.code.1),
    ];
    match images
        .into_iter()
        .find(|(_, expected, found)| expected != found)
    {
        Some((what, expected, found)) => Err(SnapshotError::OtherImage {
            id: manifest.snapshot_id.clone(),
            what,
            expected,
            found,
        }),
        None => Ok(()),
    }
}

/// Checks what the manifest says of the processor: before anything else is read.
fn check_features(manifest: &Manifest, host: &[CpuidEntryV1]) -> Result<(), SnapshotError> {
    let id = || manifest.snapshot_id.clone();
    let (found, expected) = (template::vendor(host), &manifest.cpu.vendor);
    if *expected != found {
        return Err(SnapshotError::OtherProcessor {
            id: id(),
            expected: expected.clone(),
            found,
        });
    }
    let offered = features::names(host);
    let needed = manifest.cpu.features.iter();
    let missing: Vec<_> = needed
        .filter(|name| !offered.contains(name))
        .cloned()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(SnapshotError::Processor {
        id: id(),
        source: Lacks(missing).into(),
    })
}
