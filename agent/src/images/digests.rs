//! Hashes of files that seldom change: the kernel, guest-init, root file systems.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use snapback_vmm::snapshot::Digest;

/// Hashes by path; a file that changed its length or time is read again.
#[derive(Debug, Default)]
pub struct DigestCache(Mutex<HashMap<PathBuf, Known>>);

#[derive(Debug)]
struct Known {
    len: u64,
    modified: SystemTime,
    digest: Digest,
}

impl DigestCache {
    /// The hash of a file. Reads it when it must: not for a task.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of(&self, path: &Path) -> io::Result<Digest> {
        let metadata = fs::metadata(path)?;
        let (len, modified) = (metadata.len(), metadata.modified()?);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = known.get(path)
            && entry.len == len
            && entry.modified == modified
        {
            return Ok(entry.digest);
        }
        let digest = Digest::of_reader(File::open(path)?)?;
        known.insert(
            path.to_owned(),
            Known {
                len,
                modified,
                digest,
            },
        );
        Ok(digest)
    }
}
