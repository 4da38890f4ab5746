//! Why a state file could not be written or read. Every fault names its section.

use std::io;

use super::format::{FORMAT_VERSION, MAX_STATE_LEN, SectionKind};

/// A state file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A section was added after one that must follow it, or once too often.
    #[error("section `{section}` is added out of order or too often")]
    OutOfOrder {
        /// The section's name.
        section: &'static str,
    },
    /// A section's body is longer than its kind allows.
    #[error("section `{section}` has {len} bytes, more than {cap}")]
    TooLong {
        /// The section's name.
        section: &'static str,
        /// Its length, in bytes.
        len: usize,
        /// The longest allowed, in bytes.
        cap: u32,
    },
    /// A body could not be encoded.
    #[error("section `{section}` cannot be encoded")]
    Encode {
        /// The section's name.
        section: &'static str,
        /// What postcard says.
        #[source]
        source: postcard::Error,
    },
    /// The file did not take the bytes.
    #[error("the state file cannot be written")]
    Io(#[source] io::Error),
}

impl WriteError {
    /// The section that is to blame, when one is.
    #[must_use]
    pub const fn section(&self) -> Option<&'static str> {
        match self {
            Self::OutOfOrder { section }
            | Self::TooLong { section, .. }
            | Self::Encode { section, .. } => Some(section),
            Self::Io(_) => None,
        }
    }
}

/// A state file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file gave no bytes.
    #[error("the state file cannot be read")]
    Io(#[source] io::Error),
    /// The file is larger than any state file; nothing of it was read.
    #[error("the state file has {len} bytes, more than {MAX_STATE_LEN}")]
    FileTooLong {
        /// Its length, in bytes.
        len: u64,
    },
    /// The first bytes are not those of a state file this build can read.
    #[error("the header {0}")]
    Header(HeaderFault),
    /// Something is wrong with one section.
    #[error("section `{section}`{}: {fault}", number(*index))]
    Section {
        /// Its name; `unknown` for a kind that this build does not know.
        section: &'static str,
        /// Which of its kind, from 0.
        index: u16,
        /// What is wrong; part of this error's own text, so not its source.
        fault: SectionFault,
    },
}

fn number(index: u16) -> String {
    if index == 0 {
        String::new()
    } else {
        format!(" number {index}")
    }
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// The file ends within it.
    #[error("is cut short")]
    Truncated,
    /// The magic bytes are others.
    #[error("is not one of a Snapback state file")]
    Magic,
    /// The snapshot is for another architecture.
    #[error("names architecture {0}, which this build does not know")]
    Architecture(u32),
    /// The snapshot was written by another format version.
    #[error("names format version {0}; this build reads version {FORMAT_VERSION}")]
    Version(u16),
}

/// What is wrong with a section.
#[derive(Debug, thiserror::Error)]
pub enum SectionFault {
    /// The file ends before the section does.
    #[error("the file ends within it")]
    Truncated,
    /// The section's number is not one of a known kind.
    #[error("its kind {0} is not known")]
    UnknownKind(u32),
    /// The section stands before one that must precede it, or is there too often,
    /// or its index does not count up from 0.
    #[error("it is out of order or repeated")]
    OutOfOrder,
    /// The section's length is over its cap.
    #[error("it has {len} bytes, more than {cap}")]
    TooLong {
        /// Its length, in bytes.
        len: u32,
        /// The longest allowed, in bytes.
        cap: u32,
    },
    /// The hash is another.
    #[error("hash does not match")]
    Hash,
    /// The body is of a version that the caller does not read.
    #[error("it has version {found}, and this build reads version {expected}")]
    Version {
        /// In the file.
        found: u16,
        /// What the caller reads.
        expected: u16,
    },
    /// The body is not one of the expected struct.
    #[error("its content cannot be decoded ({0})")]
    Decode(postcard::Error),
    /// Bytes follow that belong to nothing.
    #[error("it is followed by {0} bytes that belong to nothing")]
    Trailing(usize),
    /// The section is not in the file.
    #[error("it is missing")]
    Missing,
    /// The section is in the file and nobody read it.
    #[error("nothing uses it")]
    Unused,
}

impl ReadError {
    /// The section that is to blame (`header` counts as one), when one is.
    #[must_use]
    pub const fn section(&self) -> Option<&'static str> {
        match self {
            Self::Io(_) | Self::FileTooLong { .. } => None,
            Self::Header(_) => Some("header"),
            Self::Section { section, .. } => Some(section),
        }
    }

    pub(super) const fn of(kind: SectionKind, index: u16, fault: SectionFault) -> Self {
        Self::Section {
            section: kind.name(),
            index,
            fault,
        }
    }
}
