//! All snapshots of one state directory.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapback_vmm::snapshot::manifest::SnapshotId;

use super::draft::Draft;
use super::error::SnapshotError;
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
        };
        catalogue.sweep(|name| name.starts_with(DRAFT_PREFIX))?;
        Ok(catalogue)
    }

    /// Removes every snapshot that is not in `used`.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn keep_only(&self, used: &[SnapshotId]) -> Result<(), SnapshotError> {
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

    /// Begins a snapshot.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn draft(&self, id: SnapshotId) -> Result<Draft, SnapshotError> {
        let directory = self.directory.join(format!("{DRAFT_PREFIX}{id}"));
        let destination = self.path(&id);
        Draft::create(id, directory, destination, self.window)
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

    /// Removes a snapshot. Environments that still use it keep what they need.
    ///
    /// # Errors
    /// When its files cannot be removed.
    pub fn remove(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        self.slots().remove(id);
        let path = self.path(id);
        fs::remove_dir_all(&path).map_err(SnapshotError::io("removing", &path))
    }

    fn path(&self, id: &SnapshotId) -> PathBuf {
        self.directory.join(Path::new(id.as_str()))
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<SnapshotId, Slot>> {
        // The map is whole whenever the lock is free.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
