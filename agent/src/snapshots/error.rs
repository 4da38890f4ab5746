//! Why a snapshot could not be made or loaded. What is wrong with its bytes is
//! told with the section that is to blame.

use std::io;
use std::path::PathBuf;

use snapback_vmm::snapshot::manifest::{ManifestError, SnapshotId};
use snapback_vmm::snapshot::memory::MemoryError;
use snapback_vmm::snapshot::{Digest, ReadError};

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
    /// `snapshot.json` is refused.
    #[error("snapshot {id} is refused: section `snapshot.json`")]
    Manifest {
        /// Which snapshot.
        id: SnapshotId,
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
        source: ReadError,
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
