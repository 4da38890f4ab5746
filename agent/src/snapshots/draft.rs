//! A snapshot that is being made: a directory that nobody sees yet.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapback_proto::ids::FunctionName;
use snapback_vmm::arch::x86_64::{features, template};
use snapback_vmm::snapshot::Digest;
use snapback_vmm::snapshot::manifest::{
    Base, Cpu, FILE_NAME, FileDigest, MANIFEST_VERSION, MEMORY_FILE_NAME, Machine, Manifest,
    Memory, STATE_FILE_NAME, SnapshotId,
};
use snapback_vmm::snapshot::memory::{self, CHUNK_LEN};
use snapback_vmm::snapshot::page_map;
use snapback_vmm::snapshot::sums::PageSums;
use snapback_vmm::supervisor::Saved;

use super::catalogue::Pin;
use super::checked::CheckedMemory;
use super::error::SnapshotError;
use super::files::{SnapshotFiles, file_digest, read_state};
use super::hints::Hints;
use super::loaded::{Disks, Snapshot};
use crate::exec::wall_clock_ns;
use crate::pager::MemoryCache;

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
    /// Whether it is made of another snapshot, whose guest has moved its pages.
    pub gathered: bool,
}

/// A snapshot that is being made. Dropping it removes what there is of it.
#[derive(Debug)]
pub struct Draft {
    id: SnapshotId,
    /// `None` once it is committed.
    directory: Option<PathBuf>,
    destination: PathBuf,
    window: u64,
    base: Option<PinnedBase>,
}

/// A whole snapshot that a draft becomes a diff of; not removed meanwhile.
#[derive(Debug)]
pub(super) struct PinnedBase {
    pub files: SnapshotFiles,
    pub _pin: Pin,
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
        base: Option<PinnedBase>,
    ) -> Result<Self, SnapshotError> {
        fs::create_dir(&directory).map_err(SnapshotError::io("creating", &directory))?;
        Ok(Self {
            id,
            directory: Some(directory),
            destination,
            window,
            base,
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
        let (state, saved) = self.take_state()?;
        let guest = File::from(memory);
        let (chunks, base) = self.write_memory(&guest, len)?;
        let manifest = Manifest {
            format_version: MANIFEST_VERSION,
            snapshot_id: self.id.clone(),
            created_unix_ms: wall_clock_ns() / 1_000_000,
            function: parts.function.clone(),
            machine: parts.machine,
            cpu: Cpu {
                vendor: template::vendor(&saved.cpuid),
                features: features::names(&saved.cpuid),
            },
            kernel: parts.kernel,
            root_fs: parts.disks.root_fs.1,
            code: parts.disks.code.1,
            guest_init: parts.guest_init,
            state,
            memory: Memory {
                len,
                chunk_len: CHUNK_LEN,
                chunks,
            },
            base,
            gathered: parts.gathered,
        };
        self.publish(&manifest)?;
        let path = self.destination.join(MEMORY_FILE_NAME);
        // As anybody will find it.
        let files = SnapshotFiles::open(&self.destination)?;
        // What the guest never touched is zero.
        let source = CheckedMemory::new(files.memory().clone(), PageSums::zeroes(len));
        let cache = MemoryCache::warm(guest.into(), len, Box::new(source), self.window)
            .map_err(SnapshotError::io("caching", &path))?;
        let disks = parts.disks.open()?;
        let directory = &self.destination;
        let hints = Hints::none(directory.clone(), len);
        let snapshot = Snapshot::new(&manifest, directory, cache, disks, hints)?;
        // The guest was booted in it: there is nothing to bring, only to look at.
        snapshot.complete()?;
        Ok(snapshot)
    }

    /// Checks what the VMM wrote as if it came from anywhere.
    fn take_state(&self) -> Result<(FileDigest, Saved), SnapshotError> {
        let path = self.directory().join(STATE_FILE_NAME);
        let file = File::open(&path).map_err(SnapshotError::io("opening", &path))?;
        file.sync_all()
            .map_err(SnapshotError::io("syncing", &path))?;
        Ok((file_digest(&path)?, read_state(&self.id, &file)?))
    }

    /// Writes and syncs the memory, or what differs from the base's; its hashes, and
    /// the manifest's words about the base.
    fn write_memory(
        &self,
        guest: &File,
        len: u64,
    ) -> Result<(Vec<Digest>, Option<Base>), SnapshotError> {
        let path = self.directory().join(MEMORY_FILE_NAME);
        let file = create_new(&path)?;
        let failed = |source| SnapshotError::Memory {
            id: self.id.clone(),
            source,
        };
        let synced = || file.sync_all().map_err(SnapshotError::io("syncing", &path));
        let Some(PinnedBase { files: base, .. }) = &self.base else {
            let written = memory::write(guest, &file, len).map_err(failed)?;
            synced()?;
            return Ok((written.chunks, None));
        };
        let written = memory::write_diff(guest, base.memory(), &file, len).map_err(failed)?;
        synced()?;
        let (pages, data) = (written.map.pages(), written.memory.data_pages);
        tracing::info!(snapshot = %self.id, base = %base.manifest().snapshot_id, pages, data, "a diff");
        let path = self.directory().join(page_map::FILE_NAME);
        write_new(&path, &written.map.to_bytes())?;
        let base = Base {
            snapshot_id: base.manifest().snapshot_id.clone(),
            manifest: base.manifest_hash(),
            map: file_digest(&path)?,
        };
        Ok((written.memory.chunks, Some(base)))
    }

    fn publish(&mut self, manifest: &Manifest) -> Result<(), SnapshotError> {
        let path = self.directory().join(FILE_NAME);
        let text = manifest
            .to_json()
            .map_err(|source| SnapshotError::Manifest {
                path: path.clone(),
                source,
            })?;
        write_new(&path, &text)?;
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

/// Writes and syncs a file.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), SnapshotError> {
    let mut file = create_new(path)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(SnapshotError::io("writing", path))
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
