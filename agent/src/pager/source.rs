//! Where the pages of a snapshot come from.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Something that has every page of a snapshot's memory. A remote or compressed
/// one only has to implement this.
pub trait PageSource: std::fmt::Debug + Send + Sync {
    /// Fills all of `bytes` from `offset` (bytes) on.
    ///
    /// # Errors
    /// When the bytes cannot be had; a source that ends early is an error.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
}

/// A snapshot's `memory` file. Its holes are pages of zeroes.
#[derive(Debug)]
pub struct FileSource(File);

impl FileSource {
    /// Takes an open `memory` file of exactly `len` bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file has another length.
    pub fn new(file: File, len: u64) -> io::Result<Self> {
        if file.metadata()?.len() != len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self(file))
    }
}

impl PageSource for FileSource {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }
}
