//! Why a snapshot could not be made or loaded. What is wrong with its bytes is
//! told with the section that is to blame.

use std::io;
use std::path::PathBuf;

use snapback_vmm::arch::x86_64::template::Unfit;
use snapback_vmm::snapshot::Digest;
use snapback_vmm::snapshot::layers::MAX_DIFFS;
use snapback_vmm::snapshot::manifest::{ManifestError, SnapshotId};
use snapback_vmm::snapshot::memory::MemoryError;
use snapback_vmm::snapshot::page_map::PageMapError;
use snapback_vmm::supervisor::LoadError;

/// A snapshot could not be made or loaded.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file or directory gave an error.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Its memory cannot be brought.
    #[error("the memory of snapshot {id} cannot be brought")]
    Fill {
        /// Which snapshot.
        id: SnapshotId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `snapshot.json` is refused.
    #[error("the snapshot is refused: section `snapshot.json` ({})", path.display())]
    Manifest {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// `snapshot.json` is another snapshot's.
    #[error("snapshot {id} is refused: section `snapshot.json` names snapshot {found}")]
    OtherId {
        /// Which snapshot.
        id: SnapshotId,
        /// Whose it is.
        found: SnapshotId,
    },
    /// A section of `state` is refused.
    #[error("snapshot {id} is refused: section `state: {}`", source.section().unwrap_or("file"))]
    State {
        /// Which snapshot.
        id: SnapshotId,
        /// Why.
        #[source]
        source: LoadError,
    },
    /// `state` has another length or hash, although its sections are valid.
    #[error("snapshot {id} is refused: section `state: file` is not the one that was written")]
    OtherState {
        /// Which snapshot.
        id: SnapshotId,
    },
    /// `memory` is refused.
    #[error("snapshot {id} is refused: section `memory`")]
    Memory {
        /// Which snapshot.
        id: SnapshotId,
        /// Why.
        #[source]
        source: MemoryError,
    },
    /// An image is not the one that the snapshot was made with.
    #[error(
        "snapshot {id} was made with another {what} (hash {expected}, now {found}): \
         create the function again"
    )]
    OtherImage {
        /// Which snapshot.
        id: SnapshotId,
        /// Which image.
        what: &'static str,
        /// The hash in `snapshot.json`.
        expected: Digest,
        /// The file's hash.
        found: Digest,
    },
    /// `snapshot.json` and `state` contradict each other.
    #[error(
        "snapshot {id} is refused: section `snapshot.json`: `{field}` is not what the state says"
    )]
    Disagree {
        /// Which snapshot.
        id: SnapshotId,
        /// The field.
        field: &'static str,
    },
    /// What the host's processor can do is not known.
    #[error("what this host's processor can do cannot be asked of KVM")]
    Host(#[source] io::Error),
    /// The snapshot is another kind of processor's.
    #[error("snapshot {id} needs a processor of {expected}, and this is one of {found}")]
    OtherProcessor {
        /// Which snapshot.
        id: SnapshotId,
        /// The vendor in `snapshot.json`.
        expected: String,
        /// This host's.
        found: String,
    },
    /// The guest cannot go on on this host's processor.
    #[error("snapshot {id} cannot be restored on this host")]
    Processor {
        /// Which snapshot.
        id: SnapshotId,
        /// What is missing.
        #[source]
        source: Unfit,
    },
    /// A diff's base is not there.
    #[error(
        "snapshot {id} is a diff of snapshot {base}, which is not at {}: put it there",
        place.display()
    )]
    NoBase {
        /// Which snapshot.
        id: SnapshotId,
        /// Its base.
        base: SnapshotId,
        /// Where that should be.
        place: PathBuf,
    },
    /// A diff's base cannot be used.
    #[error("snapshot {id} is a diff of snapshot {base}, which cannot be used")]
    Base {
        /// Which snapshot.
        id: SnapshotId,
        /// Its base.
        base: SnapshotId,
        /// Why not.
        #[source]
        source: Box<SnapshotError>,
    },
    /// A diff's base is another than the one that it was made on.
    #[error(
        "snapshot {id} is a diff of another snapshot {base} than the one beside it \
         (hash {expected}, found {found})"
    )]
    OtherBase {
        /// Which snapshot.
        id: SnapshotId,
        /// Its base.
        base: SnapshotId,
        /// Hash of the base's `snapshot.json` when the diff was made.
        expected: Digest,
        /// Its hash now.
        found: Digest,
    },
    /// There are too many diffs on top of one another.
    #[error("snapshot {id} is refused: there are more than {MAX_DIFFS} diffs below it")]
    TooManyBases {
        /// The lowest snapshot that was looked at.
        id: SnapshotId,
    },
    /// `memory-map` is refused.
    #[error("snapshot {id} is refused: section `memory-map`")]
    Map {
        /// Which snapshot.
        id: SnapshotId,
        /// Why.
        #[source]
        source: PageMapError,
    },
    /// `memory-map` has another length or hash, although it is valid.
    #[error("snapshot {id} is refused: section `memory-map` is not the one that was written")]
    OtherMap {
        /// Which snapshot.
        id: SnapshotId,
    },
    /// The snapshot is a base and cannot be removed.
    #[error("snapshot {id} cannot be removed: it is the base of {by}")]
    InUse {
        /// Which snapshot.
        id: SnapshotId,
        /// A diff on it.
        by: SnapshotId,
    },
}

impl SnapshotError {
    /// An [`Self::Io`], for `map_err`.
    pub(super) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}
