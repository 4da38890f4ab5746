//! A snapshot that is being made: a directory that nobody sees yet.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapback_proto::ids::FunctionName;
use snapback_vmm::snapshot::manifest::{
    Cpu, FILE_NAME, MANIFEST_VERSION, MEMORY_FILE_NAME, Machine, Manifest, Memory, STATE_FILE_NAME,
    SnapshotId, State,
};
use snapback_vmm::snapshot::memory::{self, CHUNK_LEN};
use snapback_vmm::snapshot::{Digest, StateReader};

use super::error::SnapshotError;
use super::hints::Hints;
use super::loaded::{Disks, Snapshot, cpu_vendor};
use crate::exec::wall_clock_ns;
use crate::pager::{FileSource, MemoryCache};

/// What a snapshot is made of, besides state and memory.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The function that is parked in it.
    pub function: FunctionName,
    /// The machine's shape.
    pub machine: Machine,
    /// The kernel's hash.
    pub kernel: Digest,
    /// The hash of the initramfs with guest-init.
    pub guest_init: Digest,
    /// Its disks.
    pub disks: Disks,
}

/// A snapshot that is being made. Dropping it removes what there is of it.
#[derive(Debug)]
pub struct Draft {
    id: SnapshotId,
    /// `None` once it is committed.
    directory: Option<PathBuf>,
    destination: PathBuf,
    window: u64,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            // The next start of an agent tries again.
            let _ = fs::remove_dir_all(directory);
        }
    }
}

impl Draft {
    pub(super) fn create(
        id: SnapshotId,
        directory: PathBuf,
        destination: PathBuf,
        window: u64,
    ) -> Result<Self, SnapshotError> {
        fs::create_dir(&directory).map_err(SnapshotError::io("creating", &directory))?;
        Ok(Self {
            id,
            directory: Some(directory),
            destination,
            window,
        })
    }

    fn directory(&self) -> &Path {
        self.directory.as_deref().unwrap_or(&self.destination)
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> &SnapshotId {
        &self.id
    }

    /// An empty file for the state.
    ///
    /// # Errors
    /// When it cannot be made, or there is one.
    pub fn state_file(&self) -> Result<File, SnapshotError> {
        create_new(&self.directory().join(STATE_FILE_NAME))
    }

    /// Writes the rest, syncs everything and makes the snapshot visible. The
    /// guest's memory becomes its cache. Takes seconds: not for a task.
    ///
    /// # Errors
    /// When a file cannot be written, or the VMM's state file is not valid.
    pub fn commit(
        mut self,
        memory: OwnedFd,
        len: u64,
        parts: &Parts,
    ) -> Result<Arc<Snapshot>, SnapshotError> {
        let state = self.take_state()?;
        let path = self.directory().join(MEMORY_FILE_NAME);
        let file = create_new(&path)?;
        let guest = File::from(memory);
        let written =
            memory::write(&guest, &file, len).map_err(|source| SnapshotError::Memory {
                id: self.id.clone(),
                source,
            })?;
        file.sync_all()
            .map_err(SnapshotError::io("syncing", &path))?;
        let manifest = Manifest {
            format_version: MANIFEST_VERSION,
            snapshot_id: self.id.clone(),
            created_unix_ms: wall_clock_ns() / 1_000_000,
            function: parts.function.clone(),
            machine: parts.machine,
            cpu: Cpu {
                vendor: cpu_vendor(),
                features: Vec::new(),
            },
            kernel: parts.kernel,
            root_fs: parts.disks.root_fs.1,
            code: parts.disks.code.1,
            guest_init: parts.guest_init,
            state,
            memory: Memory {
                len,
                chunk_len: CHUNK_LEN,
                chunks: written.chunks,
            },
        };
        self.publish(&manifest)?;
        let path = self.destination.join(MEMORY_FILE_NAME);
        let source = File::open(&path).and_then(|file| FileSource::new(file, len));
        let cache = source
            .and_then(|source| MemoryCache::warm(guest.into(), len, Box::new(source), self.window))
            .map_err(SnapshotError::io("caching", &path))?;
        let disks = parts.disks.open()?;
        let directory = &self.destination;
        let hints = Hints::none(directory.clone());
        Ok(Snapshot::new(&manifest, directory, cache, disks, hints))
    }

    fn take_state(&self) -> Result<State, SnapshotError> {
        let path = self.directory().join(STATE_FILE_NAME);
        let open = || File::open(&path).map_err(SnapshotError::io("opening", &path));
        let file = open()?;
        file.sync_all()
            .map_err(SnapshotError::io("syncing", &path))?;
        StateReader::open(&file).map_err(|source| SnapshotError::State {
            id: self.id.clone(),
            source,
        })?;
        let len = file
            .metadata()
            .map_err(SnapshotError::io("reading", &path))?
            .len();
        let hash = Digest::of_reader(open()?).map_err(SnapshotError::io("reading", &path))?;
        Ok(State { len, hash })
    }

    fn publish(&mut self, manifest: &Manifest) -> Result<(), SnapshotError> {
        let text = manifest
            .to_json()
            .map_err(|source| SnapshotError::Manifest {
                id: self.id.clone(),
                source,
            })?;
        let path = self.directory().join(FILE_NAME);
        let mut file = create_new(&path)?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(SnapshotError::io("writing", &path))?;
        sync_directory(self.directory())?;
        let destination = self.destination.clone();
        fs::rename(self.directory(), &destination)
            .map_err(SnapshotError::io("renaming to", &destination))?;
        self.directory = None;
        match destination.parent() {
            Some(parent) => sync_directory(parent),
            None => Ok(()),
        }
    }
}

fn create_new(path: &Path) -> Result<File, SnapshotError> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(SnapshotError::io("creating", path))
}

fn sync_directory(path: &Path) -> Result<(), SnapshotError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(SnapshotError::io("syncing", path))
}
