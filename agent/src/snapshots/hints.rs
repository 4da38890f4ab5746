//! What is known of a snapshot's working set: read with the snapshot, or recorded
//! by the first run.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::Snapshot;
use crate::pager::{MemoryCache, PAGE, Recording, WorkingSet};

/// A snapshot's working set, once there is one.
#[derive(Debug)]
pub(super) struct Hints {
    directory: PathBuf,
    set: OnceLock<WorkingSet>,
    recording: AtomicBool,
    prefetched: AtomicBool,
}

impl Hints {
    /// Nothing is known yet.
    pub(super) const fn none(directory: PathBuf) -> Self {
        Self {
            directory,
            set: OnceLock::new(),
            recording: AtomicBool::new(false),
            prefetched: AtomicBool::new(false),
        }
    }

    /// What the file says, when there is one. A bad one is as good as none.
    pub(super) fn read(directory: PathBuf, memory_len: u64) -> Self {
        let hints = Self::none(directory);
        match WorkingSet::read(&hints.directory, memory_len / PAGE) {
            Ok(Some(set)) => {
                // It was empty.
                let _ = hints.set.set(set);
            }
            Ok(None) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                let directory = hints.directory.display();
                tracing::warn!(%directory, error, "a working set is ignored");
            }
        }
        hints
    }
}

/// The one recording of a snapshot's working set. Dropped before its end, it
/// leaves the task to the next run.
#[derive(Debug)]
pub struct FirstRun {
    snapshot: Arc<Snapshot>,
    recording: Option<Recording>,
}

impl Drop for FirstRun {
    fn drop(&mut self) {
        if self.recording.is_some() {
            self.snapshot
                .hints
                .recording
                .store(false, Ordering::Release);
        }
    }
}

impl FirstRun {
    /// Keeps what was recorded. Writes a file: not for a task.
    pub fn finish(mut self) {
        let Some(set) = self.recording.take().map(Recording::finish) else {
            return;
        };
        let hints = &self.snapshot.hints;
        let (snapshot, pages) = (self.snapshot.id(), set.pages());
        match set.write(&hints.directory) {
            Ok(()) => tracing::info!(%snapshot, pages, "recorded a working set"),
            Err(error) => {
                // The snapshot may have been removed meanwhile.
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%snapshot, error, "a working set cannot be written");
            }
        }
        // Only one is recorded.
        let _ = hints.set.set(set);
    }
}

impl Snapshot {
    /// The pages that a run needs, once that is known.
    #[must_use]
    pub fn working_set(&self) -> Option<&WorkingSet> {
        self.hints.set.get()
    }

    /// The working set, for the first who asks and when it has been there since
    /// the snapshot was loaded: the memory is cold then.
    #[must_use]
    pub fn to_prefetch(&self) -> Option<&WorkingSet> {
        let set = self.hints.set.get()?;
        (!self.hints.prefetched.swap(true, Ordering::Relaxed)).then_some(set)
    }

    /// Memory for a microVM whose run is recorded; `None` when the working set is
    /// known, or is being recorded.
    #[must_use]
    pub fn record(self: &Arc<Self>) -> Option<(Arc<MemoryCache>, FirstRun)> {
        if self.working_set().is_some() || self.hints.recording.swap(true, Ordering::Acquire) {
            return None;
        }
        match Recording::begin(self.memory()) {
            Ok((memory, recording)) => Some((
                memory,
                FirstRun {
                    snapshot: Arc::clone(self),
                    recording: Some(recording),
                },
            )),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(snapshot = %self.id(), error, "nothing is recorded");
                None
            }
        }
    }
}
