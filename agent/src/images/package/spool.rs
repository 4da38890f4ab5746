//! Contents of files, as numbered files of ours.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use super::budget::Budget;
use super::refused::{UnpackError, io_error};

/// What is tried when an archive's content is read.
pub const READING: &str = "reading the archive";

/// How much is copied at a time.
const CHUNK: usize = 64 * 1024;

/// A folder of contents.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    count: u32,
}

/// A file's content in the spool. Two files with one content are hard links of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    number: u32,
    /// Its length, in bytes.
    pub len: u64,
    /// Whether anybody may execute it.
    pub executable: bool,
}

impl Spool {
    /// In an empty folder.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            count: 0,
        }
    }

    /// Keeps what `content` has, as far as `budget` allows.
    pub fn keep(
        &mut self,
        content: &mut impl Read,
        executable: bool,
        budget: &mut Budget,
    ) -> Result<Content, UnpackError> {
        let number = self.count;
        self.count += 1;
        let mut file = File::create_new(self.path_of(number)).map_err(io_error("unpacking"))?;
        let mut buffer = vec![0; CHUNK];
        let mut len = 0_u64;
        loop {
            let read = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io_error(READING)(error)),
            };
            let bytes = u64::try_from(read).unwrap_or(u64::MAX);
            // Before it is written: what is too much never reaches the disk.
            budget.take(bytes)?;
            file.write_all(&buffer[..read])
                .map_err(io_error("unpacking"))?;
            len += bytes;
        }
        Ok(Content {
            number,
            len,
            executable,
        })
    }

    /// Where a content is.
    pub fn path(&self, content: Content) -> PathBuf {
        self.path_of(content.number)
    }

    /// A content to read.
    pub fn open(&self, content: Content) -> Result<File, UnpackError> {
        File::open(self.path(content)).map_err(io_error(READING))
    }

    fn path_of(&self, number: u32) -> PathBuf {
        self.folder.join(number.to_string())
    }
}
