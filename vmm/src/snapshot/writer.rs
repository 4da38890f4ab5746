//! Writing a state file.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use serde::Serialize;

use super::Digest;
use super::error::WriteError;
use super::format::{self, Architecture, Head, SectionKind};

/// Collects sections, then writes them in one go.
///
/// ```
/// # use snapback_vmm::snapshot::{SectionKind, StateReader, StateWriter};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let file = tempfile::tempfile()?;
/// let mut writer = StateWriter::new();
/// writer.section(SectionKind::Clock, 1, &(7_u64, true))?;
/// writer.finish(&file)?;
///
/// let mut reader = StateReader::open(&file)?;
/// let clock: (u64, bool) = reader.section(SectionKind::Clock, 1)?;
/// reader.finish()?;
/// assert_eq!(clock, (7, true));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct StateWriter {
    bytes: Vec<u8>,
    heads: blake3::Hasher,
    last: Option<(SectionKind, u16)>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Length of the state file, in bytes.
    pub len: u64,
    /// Hash of the whole state file.
    pub hash: Digest,
}

impl StateWriter {
    /// Begins a state file for the architecture of this build.
    #[must_use]
    pub fn new() -> Self {
        let header = format::header(Architecture::X86_64);
        let mut heads = blake3::Hasher::new();
        heads.update(&header);
        Self {
            bytes: header.to_vec(),
            heads,
            last: None,
        }
    }

    /// Adds a section. The kinds come in the order of [`SectionKind`];
    /// `Processor` may come several times, in the order of the processors.
    ///
    /// # Errors
    /// When the section is out of order or too long, or its body cannot be encoded.
    pub fn section<T: Serialize>(
        &mut self,
        kind: SectionKind,
        version: u16,
        body: &T,
    ) -> Result<(), WriteError> {
        let section = kind.name();
        if kind == SectionKind::End {
            return Err(WriteError::OutOfOrder { section });
        }
        let body =
            postcard::to_stdvec(body).map_err(|source| WriteError::Encode { section, source })?;
        self.push(kind, version, &body)
    }

    /// Adds the end and writes everything to `file`, which must be empty.
    ///
    /// # Errors
    /// When the file is not empty or cannot be written.
    pub fn finish(mut self, file: &File) -> Result<Written, WriteError> {
        let stat = rustix::fs::fstat(file).map_err(|errno| WriteError::Io(errno.into()))?;
        if stat.st_size != 0 {
            return Err(WriteError::Io(std::io::Error::new(
                std::io::ErrorKind::AlreadyExists,
                "the file is not empty",
            )));
        }
        let heads = *self.heads.finalize().as_bytes();
        self.push(SectionKind::End, 1, &heads)?;
        file.write_all_at(&self.bytes, 0).map_err(WriteError::Io)?;
        let len = self.bytes.len();
        Ok(Written {
            len: u64::try_from(len).unwrap_or(u64::MAX),
            hash: Digest::of(&self.bytes),
        })
    }

    fn push(&mut self, kind: SectionKind, version: u16, body: &[u8]) -> Result<(), WriteError> {
        let section = kind.name();
        let index = match self.last {
            Some((last, index)) if last == kind => index + 1,
            Some((last, _)) if last > kind => return Err(WriteError::OutOfOrder { section }),
            _ => 0,
        };
        if index >= kind.max_count() {
            return Err(WriteError::OutOfOrder { section });
        }
        let cap = kind.max_len();
        let len = match u32::try_from(body.len()) {
            Ok(len) if len <= cap => len,
            _ => {
                return Err(WriteError::TooLong {
                    section,
                    len: body.len(),
                    cap,
                });
            }
        };
        let head = Head {
            kind,
            version,
            index,
            len,
        }
        .to_bytes();
        let hash = Digest::of_parts(&[&head, body]);
        for part in [&head[..], hash.as_bytes()] {
            self.bytes.extend_from_slice(part);
            self.heads.update(part);
        }
        self.bytes.extend_from_slice(body);
        self.last = Some((kind, index));
        Ok(())
    }
}

impl Default for StateWriter {
    fn default() -> Self {
        Self::new()
    }
}
