//! All snapshots of one state directory.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapback_vmm::snapshot::manifest::SnapshotId;

use super::draft::{Draft, Parts, PinnedBase};
use super::error::SnapshotError;
use super::files::{SnapshotFiles, base_of};
use super::loaded::{Disks, Snapshot};

/// What the directories of unfinished snapshots begin with.
const DRAFT_PREFIX: &str = ".draft-";

/// A snapshot's place among the loaded ones. The lock is held while it is loaded,
/// so that this happens once.
type Slot = Arc<Mutex<Option<Arc<Snapshot>>>>;

/// The snapshots on disk and those in use.
#[derive(Debug)]
pub struct Catalogue {
    directory: PathBuf,
    window: u64,
    loaded: Mutex<HashMap<SnapshotId, Slot>>,
    pins: Arc<Pins>,
}

/// Snapshots that drafts are becoming diffs of, each with those drafts' names. The lock
/// is held while a snapshot is removed.
type Pins = Mutex<Vec<(SnapshotId, SnapshotId)>>;

/// Keeps a base from being removed before its diff is there to be seen.
#[derive(Debug)]
pub(super) struct Pin {
    pins: Arc<Pins>,
    base: SnapshotId,
    by: SnapshotId,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.retain(|(base, by)| (base, by) != (&self.base, &self.by));
    }
}

impl Catalogue {
    /// Opens (or makes) the catalogue and removes unfinished snapshots. `window`
    /// is how many bytes a cache fills in around a missing page.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open(directory: PathBuf, window: u64) -> Result<Self, SnapshotError> {
        fs::create_dir_all(&directory).map_err(SnapshotError::io("creating", &directory))?;
        let catalogue = Self {
            directory,
            window,
            loaded: Mutex::default(),
            pins: Arc::default(),
        };
        catalogue.sweep(|name| name.starts_with(DRAFT_PREFIX))?;
        Ok(catalogue)
    }

    /// Removes every snapshot that is not in `used` nor a base of one that is.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn keep_only(&self, used: &[SnapshotId]) -> Result<(), SnapshotError> {
        let mut kept = used.to_vec();
        let mut next = 0;
        while let Some(id) = kept.get(next) {
            let base = base_of(&self.path(id)).filter(|base| !kept.contains(base));
            kept.extend(base);
            next += 1;
        }
        let used = kept;
        self.sweep(|name| {
            name.parse::<SnapshotId>()
                .is_ok_and(|id| !used.contains(&id))
        })
    }

    fn sweep(&self, unwanted: impl Fn(&str) -> bool) -> Result<(), SnapshotError> {
        let entries =
            fs::read_dir(&self.directory).map_err(SnapshotError::io("reading", &self.directory))?;
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(&unwanted) {
                let path = entry.path();
                tracing::info!(path = %path.display(), "removing a snapshot nobody uses");
                fs::remove_dir_all(&path).map_err(SnapshotError::io("removing", &path))?;
            }
        }
        Ok(())
    }

    /// Begins a snapshot, which is made a diff of `base` when there is one.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn draft(&self, id: SnapshotId, base: Option<&SnapshotId>) -> Result<Draft, SnapshotError> {
        let directory = self.directory.join(format!("{DRAFT_PREFIX}{id}"));
        let destination = self.path(&id);
        let base = base.map(|base| self.pin(base, &id)).transpose()?;
        Draft::create(id, directory, destination, self.window, base)
    }

    fn pin(&self, base: &SnapshotId, by: &SnapshotId) -> Result<PinnedBase, SnapshotError> {
        self.pins().push((base.clone(), by.clone()));
        let pin = Pin {
            pins: Arc::clone(&self.pins),
            base: base.clone(),
            by: by.clone(),
        };
        let files = SnapshotFiles::open(&self.path(base))?;
        Ok(PinnedBase { files, _pin: pin })
    }

    /// The first of `candidates` that a snapshot of these parts can be a diff of: a
    /// whole one of the same machine, kernel and root file system.
    #[must_use]
    pub fn base_for(&self, parts: &Parts, candidates: &[SnapshotId]) -> Option<SnapshotId> {
        let fits = |id: &&SnapshotId| {
            SnapshotFiles::open(&self.path(id)).is_ok_and(|files| {
                let manifest = files.manifest();
                manifest.base.is_none()
                    && manifest.machine == parts.machine
                    && manifest.kernel == parts.kernel
                    && manifest.root_fs == parts.disks.root_fs.1
            })
        };
        candidates.iter().find(fits).cloned()
    }

    /// Takes a snapshot that was just made for loaded.
    pub fn adopt(&self, snapshot: &Arc<Snapshot>) {
        let slot = Arc::new(Mutex::new(Some(Arc::clone(snapshot))));
        self.slots().insert(snapshot.id().clone(), slot);
    }

    /// The snapshot, loaded and checked now when it was not before. May take
    /// seconds: not for a task.
    ///
    /// # Errors
    /// When it is damaged or does not fit this host. It is tried again the next
    /// time.
    pub fn load(&self, id: &SnapshotId, disks: &Disks) -> Result<Arc<Snapshot>, SnapshotError> {
        let slot = Arc::clone(self.slots().entry(id.clone()).or_default());
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = &*slot {
            return Ok(Arc::clone(snapshot));
        }
        let snapshot = Snapshot::load(id, &self.path(id), disks, self.window)?;
        *slot = Some(Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// The snapshot, if it is loaded already.
    #[must_use]
    pub fn loaded(&self, id: &SnapshotId) -> Option<Arc<Snapshot>> {
        let slot = self.slots().get(id).map(Arc::clone)?;
        // Whoever holds the lock is loading it.
        let slot = slot.try_lock().ok()?;
        slot.clone()
    }

    /// What a snapshot is made of, with `disks` as what lies under its guest.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn parts_of(&self, id: &SnapshotId, disks: Disks) -> Result<Parts, SnapshotError> {
        let files = SnapshotFiles::open(&self.path(id))?;
        let manifest = files.manifest();
        Ok(Parts {
            function: manifest.function.clone(),
            machine: manifest.machine,
            kernel: manifest.kernel,
            guest_init: manifest.guest_init,
            disks,
            gathered: manifest.gathered,
        })
    }

    /// Removes a snapshot, and its bases when nobody else needs them (`used` says of
    /// which snapshots there are functions). Environments that still use it keep what
    /// they need.
    ///
    /// # Errors
    /// `InUse` when it is the base of another; else when its files cannot be removed.
    pub fn remove(
        &self,
        id: &SnapshotId,
        used: impl Fn(&SnapshotId) -> bool,
    ) -> Result<(), SnapshotError> {
        let mut next = self.remove_one(id)?;
        while let Some(base) = next.filter(|base| !used(base)) {
            next = match self.remove_one(&base) {
                Err(SnapshotError::InUse { .. }) => None,
                removed => removed?,
            };
        }
        Ok(())
    }

    /// Removes one snapshot; its base is left over.
    fn remove_one(&self, id: &SnapshotId) -> Result<Option<SnapshotId>, SnapshotError> {
        // Held to the end: no draft begins on it meanwhile.
        let pins = self.pins();
        let pinned = pins.iter().find(|(base, _)| base == id);
        let by = pinned.map(|(_, by)| by.clone());
        if let Some(by) = by.map_or_else(|| self.diff_of(id), |by| Ok(Some(by)))? {
            return Err(SnapshotError::InUse { id: id.clone(), by });
        }
        let path = self.path(id);
        let base = base_of(&path);
        self.slots().remove(id);
        fs::remove_dir_all(&path).map_err(SnapshotError::io("removing", &path))?;
        Ok(base)
    }

    /// A snapshot whose base is `id`.
    fn diff_of(&self, id: &SnapshotId) -> Result<Option<SnapshotId>, SnapshotError> {
        let entries =
            fs::read_dir(&self.directory).map_err(SnapshotError::io("reading", &self.directory))?;
        let ids = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<SnapshotId>().ok());
        Ok(ids
            .into_iter()
            .find(|other| base_of(&self.path(other)).as_ref() == Some(id)))
    }

    fn pins(&self) -> MutexGuard<'_, Vec<(SnapshotId, SnapshotId)>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: &SnapshotId) -> PathBuf {
        self.directory.join(Path::new(id.as_str()))
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<SnapshotId, Slot>> {
        // The map is whole whenever the lock is free.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
