//! A snapshot's files: opened, with those of its bases, and checked against their
//! hashes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use snapback_vmm::arch::x86_64::features;
use snapback_vmm::snapshot::layers::{Layers, MAX_DIFFS};
use snapback_vmm::snapshot::manifest::{
    Base, FILE_NAME, FileDigest, MEMORY_FILE_NAME, Manifest, STATE_FILE_NAME, SnapshotId,
};
use snapback_vmm::snapshot::page_map::{self, PageMap};
use snapback_vmm::snapshot::sums::PageSums;
use snapback_vmm::snapshot::{Digest, memory};
use snapback_vmm::supervisor::Saved;

use super::error::SnapshotError;

/// A snapshot whose manifest was read and whose memory is open; nothing else of it
/// has been looked at.
#[derive(Debug)]
pub struct SnapshotFiles {
    directory: PathBuf,
    manifest: Manifest,
    manifest_hash: Digest,
    memory: Layers,
    /// The pages of its own memory file, when it is a diff.
    map: Option<PageMap>,
    /// The snapshots below, from the nearest to the whole one.
    bases: Vec<SnapshotId>,
}

impl SnapshotFiles {
    /// Opens the snapshot in `directory`, and its bases, which lie beside it.
    ///
    /// # Errors
    /// When a file is missing, a manifest or a map is refused, or a base is another
    /// than the one that the snapshot was made on.
    pub fn open(directory: &Path) -> Result<Self, SnapshotError> {
        Self::open_above(directory, MAX_DIFFS)
    }

    /// As [`Self::open`], with at most `room` diffs in the chain.
    fn open_above(directory: &Path, room: usize) -> Result<Self, SnapshotError> {
        let (manifest, manifest_hash) = read_manifest(directory)?;
        let path = directory.join(MEMORY_FILE_NAME);
        let file = File::open(&path).map_err(SnapshotError::io("opening", &path))?;
        let len = manifest.memory.len;
        let layer = |source| SnapshotError::Memory {
            id: manifest.snapshot_id.clone(),
            source: memory::MemoryError::Layer(source),
        };
        let Some(base) = &manifest.base else {
            let memory = Layers::whole(file, len).map_err(layer)?;
            return Ok(Self {
                directory: directory.to_owned(),
                manifest,
                manifest_hash,
                memory,
                map: None,
                bases: Vec::new(),
            });
        };
        let below = open_base(&manifest, base, directory, room)?;
        let map = read_map(&manifest, base, directory)?;
        let memory = below.memory.with(map.clone(), file).map_err(layer)?;
        let mut bases = vec![base.snapshot_id.clone()];
        bases.extend(below.bases);
        Ok(Self {
            directory: directory.to_owned(),
            manifest,
            manifest_hash,
            memory,
            map: Some(map),
            bases,
        })
    }

    /// Where they lie.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the snapshot is.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Hash of its `snapshot.json`.
    #[must_use]
    pub const fn manifest_hash(&self) -> Digest {
        self.manifest_hash
    }

    /// Its memory, bases included.
    #[must_use]
    pub const fn memory(&self) -> &Layers {
        &self.memory
    }

    /// The pages of its own memory file, when it is a diff.
    #[must_use]
    pub const fn map(&self) -> Option<&PageMap> {
        self.map.as_ref()
    }

    /// The snapshots below, from the nearest to the whole one.
    #[must_use]
    pub fn bases(&self) -> &[SnapshotId] {
        &self.bases
    }

    /// Where its state lies.
    #[must_use]
    pub fn state_path(&self) -> PathBuf {
        self.directory.join(STATE_FILE_NAME)
    }

    /// Reads the state and checks it: its frame, its hashes, every section's content,
    /// and that it is the manifest's.
    ///
    /// # Errors
    /// Names the section that is refused.
    pub fn state(&self) -> Result<Saved, SnapshotError> {
        let id = &self.manifest.snapshot_id;
        let path = self.state_path();
        let file = File::open(&path).map_err(SnapshotError::io("opening", &path))?;
        // The sections first: they name what is wrong.
        let saved = read_state(id, &file)?;
        if file_digest(&path)? != self.manifest.state {
            return Err(SnapshotError::OtherState { id: id.clone() });
        }
        let (said, found) = (&self.manifest.machine, &saved.machine);
        let differs = [
            ("machine.memory_mib", said.memory_mib != found.memory_mib),
            ("machine.vcpus", said.vcpus != found.vcpus),
            ("machine.template", said.template != found.template),
            (
                "cpu.features",
                self.manifest.cpu.features != features::names(&saved.cpuid),
            ),
        ];
        match differs.into_iter().find(|(_, differs)| *differs) {
            Some((field, _)) => Err(SnapshotError::Disagree {
                id: id.clone(),
                field,
            }),
            None => Ok(saved),
        }
    }

    /// Checks every hash of the memory, as it is with its bases; what its pages are then.
    ///
    /// # Errors
    /// Names the chunk that is damaged.
    pub fn check_memory(&self) -> Result<PageSums, SnapshotError> {
        memory::verify(&self.memory, &self.manifest.memory.chunks).map_err(|source| {
            SnapshotError::Memory {
                id: self.manifest.snapshot_id.clone(),
                source,
            }
        })
    }
}

/// Reads a state file with the error of the snapshot `id`.
pub(super) fn read_state(id: &SnapshotId, file: &File) -> Result<Saved, SnapshotError> {
    Saved::load(file).map_err(|source| SnapshotError::State {
        id: id.clone(),
        source,
    })
}

/// The base of the snapshot in `directory`, when it has one; `None` also when there
/// is no snapshot.
pub(super) fn base_of(directory: &Path) -> Option<SnapshotId> {
    let (manifest, _) = read_manifest(directory).ok()?;
    Some(manifest.base?.snapshot_id)
}

fn read_manifest(directory: &Path) -> Result<(Manifest, Digest), SnapshotError> {
    let path = directory.join(FILE_NAME);
    let file = File::open(&path).map_err(SnapshotError::io("opening", &path))?;
    Manifest::read(&file).map_err(|source| SnapshotError::Manifest { path, source })
}

fn open_base(
    manifest: &Manifest,
    base: &Base,
    directory: &Path,
    room: usize,
) -> Result<SnapshotFiles, SnapshotError> {
    let id = || manifest.snapshot_id.clone();
    let name = &base.snapshot_id;
    let room = room
        .checked_sub(1)
        .ok_or_else(|| SnapshotError::TooManyBases { id: id() })?;
    // The names of a directory's snapshots are their ids.
    let beside = match directory.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let place = beside.join(name.as_str());
    if !place.join(FILE_NAME).exists() {
        return Err(SnapshotError::NoBase {
            id: id(),
            base: name.clone(),
            place,
        });
    }
    let below = SnapshotFiles::open_above(&place, room).map_err(|source| SnapshotError::Base {
        id: id(),
        base: name.clone(),
        source: Box::new(source),
    })?;
    if below.manifest_hash != base.manifest || below.manifest.snapshot_id != *name {
        return Err(SnapshotError::OtherBase {
            id: id(),
            base: name.clone(),
            expected: base.manifest,
            found: below.manifest_hash,
        });
    }
    Ok(below)
}

fn read_map(manifest: &Manifest, base: &Base, directory: &Path) -> Result<PageMap, SnapshotError> {
    let id = || manifest.snapshot_id.clone();
    let path = directory.join(page_map::FILE_NAME);
    let file = File::open(&path).map_err(SnapshotError::io("opening", &path))?;
    let pages = manifest.memory.len / crate::pager::PAGE;
    let map =
        PageMap::read(&file, pages).map_err(|source| SnapshotError::Map { id: id(), source })?;
    let bytes = map.to_bytes();
    let found = FileDigest {
        len: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        hash: Digest::of(&bytes),
    };
    if found == base.map {
        Ok(map)
    } else {
        Err(SnapshotError::OtherMap { id: id() })
    }
}

/// Length and hash of a file.
pub(super) fn file_digest(path: &Path) -> Result<FileDigest, SnapshotError> {
    let failed = SnapshotError::io("reading", path);
    let hashed = File::open(path).and_then(Digest::of_reader);
    let measured = fs::metadata(path);
    match (hashed, measured) {
        (Ok(hash), Ok(metadata)) => Ok(FileDigest {
            len: metadata.len(),
            hash,
        }),
        (Err(error), _) | (_, Err(error)) => Err(failed(error)),
    }
}
