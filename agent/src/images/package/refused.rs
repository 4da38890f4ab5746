//! Why a package is refused: what is wrong, with which entry, and what to do about it.

use std::io;

use super::budget::{MAX_ENTRIES, MAX_RATIO};
use super::oci::OciError;
use super::path::{MAX_DEPTH, MAX_NAME, MAX_PATH};

/// An archive was refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive cannot be read, or its content not be written.
    #[error("{operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The archive is empty.
    #[error("it has no files: the function's code belongs at its top level")]
    Empty,
    /// Neither a zip nor a tar archive.
    #[error("it is neither a zip nor a tar archive: code is a folder, a zip or a container image")]
    Unknown,
    /// A compressed tar archive.
    #[error("it is compressed with gzip: send the tar archive itself, or a zip")]
    Compressed,
    /// Too many entries.
    #[error(
        "it has more than {MAX_ENTRIES} files and folders: leave out what the code does not need"
    )]
    TooMany,
    /// The content is too long.
    #[error(
        "its content is larger than {max_bytes} bytes: leave out what the code does not need, \
         or raise `limits.max_code_mib`"
    )]
    TooLarge {
        /// The most that is allowed.
        max_bytes: u64,
    },
    /// The content is suspiciously much for so short an archive.
    #[error(
        "its content is more than {MAX_RATIO} times as long as the archive: that is no code but a \
         decompression bomb"
    )]
    Bomb,
    /// A path is not one of a file within the package.
    #[error("the path {path:?} {fault}")]
    Path {
        /// The path, cut to a readable length.
        path: String,
        /// What is wrong with it.
        fault: PathFault,
    },
    /// An entry is none of the kinds that a package may have.
    #[error("{path:?} is a {kind}: a package has files, folders and symbolic links, nothing else")]
    Kind {
        /// Which entry.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// Two entries of one name.
    #[error("{path:?} is there twice: which of the two is meant cannot be known")]
    Twice {
        /// Which entry.
        path: String,
    },
    /// A hard link to something that is no file of the package.
    #[error("the hard link {path:?} leads to {target:?}, which is no file of the package")]
    HardLink {
        /// Which entry.
        path: String,
        /// Where it leads.
        target: String,
    },
    /// A header of the tar archive is damaged or of a kind that is not understood.
    #[error("the tar archive is damaged: {0}")]
    Tar(&'static str),
    /// The zip's table of contents is damaged.
    #[error("the zip is damaged or of an unusual kind: {0}")]
    Zip(&'static str),
    /// The zip or one of its entries cannot be read.
    #[error("the zip's entry {path:?} cannot be read")]
    ZipEntry {
        /// Which entry.
        path: String,
        /// Why.
        #[source]
        source: zip::result::ZipError,
    },
    /// It is a container image that cannot be used.
    #[error("it is a container image, but cannot be used as one")]
    Image(#[from] OciError),
}

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It begins at the root.
    #[error("is absolute: paths are relative to the package's top level")]
    Absolute,
    /// It has a `..`.
    #[error("has a `..`, with which it could leave the package")]
    Upwards,
    /// It has a zero byte, or is empty.
    #[error("is not a name that a file can have")]
    NotAName,
    /// It or one of its names is too long.
    #[error("is longer than {MAX_PATH} bytes, or one of its names than {MAX_NAME}")]
    TooLong,
    /// It has too many names.
    #[error("is deeper than {MAX_DEPTH} folders")]
    TooDeep,
    /// A link is on its way.
    #[error("goes through a symbolic link: in a package, files are where their path says")]
    ThroughLink,
    /// A file is on its way.
    #[error("goes through something that is no folder")]
    ThroughFile,
    /// The links on its way lead around in a circle.
    #[error("goes through too many symbolic links")]
    Circle,
    /// A link's target is empty, too long or has a zero byte.
    #[error("is a symbolic link to what cannot be a path")]
    Target,
}

pub(super) fn io_error(operation: &'static str) -> impl FnOnce(io::Error) -> UnpackError {
    move |source| UnpackError::Io { operation, source }
}

/// A path for an error: cut to a readable length.
pub(super) fn readable(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(100).collect()
}
