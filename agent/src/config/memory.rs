//! The guests' memory: how it is filled in, and how it is kept on disk.

use serde::Deserialize;

use super::range::{Range, range, wide};

/// The threads that fill in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pager {
    /// How many threads.
    pub threads: usize,
    /// How much is filled in around a missing page, in KiB: a power of two from
    /// 4 to 2048.
    pub fill_kib: u32,
    /// When the rest of a snapshot's memory is brought.
    pub fill: Fill,
    /// Whether the pages of a snapshot's first run are recorded, and brought at once
    /// when the snapshot is loaded again.
    pub working_sets: bool,
    /// Whether a snapshot is made anew once it is known what its runs write: with the pages
    /// that they touch next to each other. Needs `working_sets`.
    pub gather: bool,
}

/// When the pages of a snapshot are brought into the host's memory that nobody has
/// needed yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// Never: only what a microVM touches. The least memory.
    Lazy,
    /// After the snapshot's first restore, when nothing else is to be brought. Later
    /// restores need no pager.
    #[default]
    Background,
    /// Before the snapshot's first restore, which waits for it.
    Eager,
}

/// Snapshots on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Snapshots {
    /// Whether a new function's snapshot is stored as a diff of the first one of the
    /// same machine, kernel and root file system.
    pub diffs: bool,
}

impl Default for Pager {
    fn default() -> Self {
        Self {
            threads: 2,
            fill_kib: 64,
            fill: Fill::default(),
            working_sets: true,
            gather: true,
        }
    }
}

impl Pager {
    /// Whether snapshots are made anew.
    #[must_use]
    pub const fn gathers(&self) -> bool {
        self.working_sets && self.gather
    }

    pub(super) fn ranges(&self) -> Vec<Range> {
        vec![
            range("pager.threads", wide(self.threads), 1, 64),
            range("pager.fill_kib", self.fill_kib.into(), 4, 2048),
        ]
    }
}
