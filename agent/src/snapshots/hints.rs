//! What is known of a snapshot's working set: read with the snapshot, or recorded
//! by the first run.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use snapback_proto::control::PageRun;
use snapback_proto::guest::{Gather, MAX_GATHERED};

use super::Snapshot;
use super::writes::{Watcher, Writes};
use crate::pager::{
    Ahead, Arranging, MemoryCache, PAGE, Prepared, Recording, WORKING_SET_FILE_NAME, WorkingSet,
};

/// A snapshot's working set, once there is one.
#[derive(Debug)]
pub(super) struct Hints {
    directory: PathBuf,
    set: OnceLock<WorkingSet>,
    recording: AtomicBool,
    prefetched: AtomicBool,
    completing: AtomicBool,
    gathering: AtomicBool,
    settled: AtomicBool,
    arranging: AtomicBool,
    writes: Writes,
    ahead: Arc<Ahead>,
}

impl Hints {
    /// Nothing is known yet.
    pub(super) fn none(directory: PathBuf, memory_len: u64) -> Self {
        Self {
            writes: Writes::read(directory.clone(), memory_len / PAGE),
            directory,
            set: OnceLock::new(),
            recording: AtomicBool::new(false),
            prefetched: AtomicBool::new(false),
            completing: AtomicBool::new(false),
            gathering: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            arranging: AtomicBool::new(false),
            ahead: Arc::default(),
        }
    }

    /// What the file says, when there is one. A bad one is as good as none.
    pub(super) fn read(directory: PathBuf, memory_len: u64) -> Self {
        let hints = Self::none(directory, memory_len);
        match WorkingSet::read(&hints.path(), memory_len / PAGE) {
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

    /// No other snapshot will take the place of this one.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Release);
    }

    fn path(&self) -> PathBuf {
        self.directory.join(WORKING_SET_FILE_NAME)
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
        match set.write(&hints.path()) {
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

    /// The working set, for the first who asks. What is in the memory already costs
    /// nothing to bring.
    #[must_use]
    pub fn to_prefetch(&self) -> Option<&WorkingSet> {
        let set = self.hints.set.get()?;
        (!self.hints.prefetched.swap(true, Ordering::Relaxed)).then_some(set)
    }

    /// Whether the rest of the memory is to be brought: true for the first who asks,
    /// unless it is there.
    #[must_use]
    pub fn to_complete(&self) -> bool {
        !self.memory().is_complete() && !self.hints.completing.swap(true, Ordering::Relaxed)
    }

    /// The pages that runs touch, for the first who asks once that is known, unless they
    /// were gathered already.
    #[must_use]
    pub fn to_gather(&self) -> Option<Gather> {
        let hints = &self.hints;
        let written = hints.writes.known();
        let now = !self.is_settled()
            && self.memory().is_complete()
            && !written.is_empty()
            && !hints.gathering.swap(true, Ordering::Relaxed);
        now.then(|| {
            let pages = |run: &PageRun| run.first..run.first.saturating_add(run.pages);
            let written: Vec<u32> = written.iter().flat_map(pages).collect();
            let own: BTreeSet<u32> = written.iter().copied().collect();
            let touched = self.working_set().into_iter().flat_map(WorkingSet::runs);
            let read = touched
                .cloned()
                .flatten()
                .filter(|page| !own.contains(page));
            let read = read.take(MAX_GATHERED).collect();
            Gather { written, read }
        })
    }

    /// No other snapshot will take its place: it is worth arranging its memory.
    pub fn settle(&self) {
        self.hints.settle();
    }

    /// See [`Self::settle`].
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.hints.settled.load(Ordering::Acquire)
    }

    /// The work of arranging its memory for its microVMs: for the first who asks once all of
    /// it is there and it is known what runs write.
    #[must_use]
    pub fn to_arrange(&self) -> Option<Arranging> {
        let written = self.hints.writes.known();
        let now = self.memory().is_complete()
            && !written.is_empty()
            && !self.hints.arranging.swap(true, Ordering::Relaxed);
        let (memory, set) = (self.memory(), self.working_set());
        now.then(|| Arranging::new(memory, written, set, &self.hints.ahead))
    }

    /// What its microVMs get ahead, once that is prepared.
    #[must_use]
    pub fn ahead(&self) -> Option<&Prepared> {
        self.hints.ahead.get()
    }

    /// Whether the next run is one to learn from.
    #[must_use]
    pub fn learns_writes(&self) -> bool {
        self.hints.writes.are_wanted()
    }

    /// Learns from a run that went well. May write a file: not for a task.
    pub fn learn_writes(&self, run: Watcher) {
        self.hints.writes.learn(run);
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::path::Path;

    use snapback_proto::cpu::CpuTemplate;
    use snapback_vmm::snapshot::Digest;
    use snapback_vmm::snapshot::manifest::{Cpu, FileDigest, Machine, Manifest, Memory};

    use super::*;
    use crate::pager::PageSource;

    const LEN: u64 = 16 * PAGE;

    #[derive(Debug)]
    struct Ones;

    impl PageSource for Ones {
        fn read_at(&self, _: u64, bytes: &mut [u8]) -> io::Result<()> {
            bytes.fill(1);
            Ok(())
        }

        fn data_after(&self, offset: u64) -> io::Result<u64> {
            Ok(offset)
        }
    }

    /// As if it was loaded from `directory`.
    fn snapshot(directory: &Path) -> Arc<Snapshot> {
        let none = Digest::of(b"");
        let manifest = Manifest {
            format_version: 1,
            snapshot_id: "hints".parse().unwrap(),
            created_unix_ms: 0,
            function: "f".parse().unwrap(),
            machine: Machine {
                memory_mib: 1,
                vcpus: 1,
                template: CpuTemplate::Host,
            },
            cpu: Cpu {
                vendor: String::new(),
                features: Vec::new(),
            },
            kernel: none,
            root_fs: none,
            code: none,
            guest_init: none,
            state: FileDigest { len: 0, hash: none },
            memory: Memory {
                len: LEN,
                chunk_len: 0,
                chunks: Vec::new(),
            },
            base: None,
            gathered: false,
        };
        fs::write(directory.join("state"), b"").unwrap();
        let cache = MemoryCache::cold(LEN, Box::new(Ones), PAGE).unwrap();
        let hints = Hints::read(directory.to_owned(), LEN);
        Snapshot::new(&manifest, directory, cache, Vec::new(), hints).unwrap()
    }

    #[test]
    fn the_first_run_is_recorded_and_found_when_the_snapshot_is_loaded_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = snapshot(folder.path());
        let (memory, run) = first.record().unwrap();
        assert!(first.record().is_none(), "two recordings");
        memory.fill(7 * PAGE).unwrap();
        memory.fill(3 * PAGE).unwrap();
        run.finish();
        let expected = WorkingSet::of([7, 3], 16);
        assert_eq!(first.working_set(), Some(&expected));
        assert!(first.record().is_none(), "a second recording");

        let again = snapshot(folder.path());
        assert!(again.record().is_none(), "a known set is recorded");
        assert_eq!(again.to_prefetch(), Some(&expected));
        assert_eq!(again.to_prefetch(), None);
    }

    #[test]
    fn a_run_that_ends_early_leaves_the_task_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = snapshot(folder.path());
        drop(snapshot.record().unwrap());
        assert!(snapshot.working_set().is_none());
        assert!(snapshot.record().is_some());
    }

    #[test]
    fn a_bad_file_is_ignored_and_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(WORKING_SET_FILE_NAME);
        fs::write(&file, b"SNAPWS\r\nand nothing else").unwrap();
        let snapshot = snapshot(folder.path());
        assert!(snapshot.to_prefetch().is_none());
        let (_, run) = snapshot.record().unwrap();
        run.finish();
        assert!(WorkingSet::read(&file, 16).unwrap().is_some());
    }
}
