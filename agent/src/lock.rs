//! Files that only one agent may hold: the state directory's and the socket's.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// A lock is held by somebody else or cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error("another agent uses {}: one agent at a time", what.display())]
    Held {
        /// The directory or socket that the lock is for.
        what: PathBuf,
    },
    /// The lock file gave an error.
    #[error("the lock file {} cannot be used", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A lock, held until it is dropped or its process ends in whatever way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock `path`, which stands for `what`, without waiting.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be made.
    pub fn take(path: &Path, what: &Path) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(io_error)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Held {
                what: what.to_owned(),
            }),
            Err(errno) => Err(io_error(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = Lock::take(&path, directory.path()).unwrap();
        assert!(matches!(
            Lock::take(&path, directory.path()),
            Err(LockError::Held { .. })
        ));
        drop(first);
        Lock::take(&path, directory.path()).unwrap();
    }
}
