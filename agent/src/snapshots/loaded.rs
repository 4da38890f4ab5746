//! A snapshot that environments are restored from.

use std::fs::File;
use std::io::{self, BufRead as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapback_vmm::snapshot::manifest::{
    FILE_NAME, MEMORY_FILE_NAME, Machine, Manifest, STATE_FILE_NAME, SnapshotId,
};
use snapback_vmm::snapshot::{Digest, StateReader, memory};

use super::error::SnapshotError;
use super::hints::Hints;
use crate::pager::{FileSource, MemoryCache};

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
    state: PathBuf,
    disks: Vec<File>,
    pub(super) hints: Hints,
}

impl Snapshot {
    pub(super) fn new(
        manifest: &Manifest,
        directory: &Path,
        memory: MemoryCache,
        disks: Vec<File>,
        hints: Hints,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: manifest.snapshot_id.clone(),
            machine: manifest.machine,
            memory: Arc::new(memory),
            state: directory.join(STATE_FILE_NAME),
            disks,
            hints,
        })
    }

    /// Reads a snapshot from its directory and checks all of it.
    pub(super) fn load(
        id: &SnapshotId,
        directory: &Path,
        disks: &Disks,
        window: u64,
    ) -> Result<Arc<Self>, SnapshotError> {
        let path = directory.join(FILE_NAME);
        let file = File::open(&path).map_err(SnapshotError::io("opening", &path))?;
        let manifest = Manifest::read(&file).map_err(|source| SnapshotError::Manifest {
            id: id.clone(),
            source,
        })?;
        if manifest.snapshot_id != *id {
            let found = manifest.snapshot_id;
            return Err(SnapshotError::OtherId {
                id: id.clone(),
                found,
            });
        }
        check_surroundings(&manifest, disks)?;
        check_state(&manifest, directory)?;
        let path = directory.join(MEMORY_FILE_NAME);
        let file = File::open(&path).map_err(SnapshotError::io("opening", &path))?;
        memory::verify(&file, manifest.memory.len, &manifest.memory.chunks).map_err(|source| {
            SnapshotError::Memory {
                id: id.clone(),
                source,
            }
        })?;
        let len = manifest.memory.len;
        let cache = FileSource::new(file, len)
            .and_then(|source| MemoryCache::cold(len, Box::new(source), window))
            .map_err(SnapshotError::io("caching", &path))?;
        let hints = Hints::read(directory.to_owned(), len);
        Ok(Self::new(&manifest, directory, cache, disks.open()?, hints))
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

    /// Its disks, in order.
    #[must_use]
    pub fn disks(&self) -> &[File] {
        &self.disks
    }

    /// Its state, opened anew: readers do not share a position.
    ///
    /// # Errors
    /// When the file is gone.
    pub fn open_state(&self) -> io::Result<File> {
        File::open(&self.state)
    }
}

fn check_surroundings(manifest: &Manifest, disks: &Disks) -> Result<(), SnapshotError> {
    let id = &manifest.snapshot_id;
    let images = [
        ("root file system", manifest.root_fs, disks.root_fs.1),
        ("code", manifest.code, disks.code.1),
    ];
    for (what, expected, found) in images {
        if expected != found {
            return Err(SnapshotError::OtherImage {
                id: id.clone(),
                what,
                expected,
                found,
            });
        }
    }
    let found = cpu_vendor();
    if manifest.cpu.vendor != found {
        let expected = manifest.cpu.vendor.clone();
        return Err(SnapshotError::OtherProcessor {
            id: id.clone(),
            expected,
            found,
        });
    }
    Ok(())
}

fn check_state(manifest: &Manifest, directory: &Path) -> Result<(), SnapshotError> {
    let id = &manifest.snapshot_id;
    let path = directory.join(STATE_FILE_NAME);
    let file = File::open(&path).map_err(SnapshotError::io("opening", &path))?;
    let len = file
        .metadata()
        .map_err(SnapshotError::io("reading", &path))?
        .len();
    // The sections first: they name what is wrong.
    StateReader::open(&file).map_err(|source| SnapshotError::State {
        id: id.clone(),
        source,
    })?;
    let file = File::open(&path).map_err(SnapshotError::io("opening", &path))?;
    let hash = Digest::of_reader(file).map_err(SnapshotError::io("reading", &path))?;
    if len != manifest.state.len || hash != manifest.state.hash {
        return Err(SnapshotError::OtherState { id: id.clone() });
    }
    Ok(())
}

/// CPUID's vendor string, as the kernel tells it; 12 question marks when it does
/// not.
pub(super) fn cpu_vendor() -> String {
    let unknown = || "?".repeat(12);
    let Ok(file) = File::open("/proc/cpuinfo") else {
        return unknown();
    };
    io::BufReader::new(file)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == "vendor_id").then(|| value.trim().to_owned())
        })
        .unwrap_or_else(unknown)
}
