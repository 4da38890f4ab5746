//! Unpacks a caller's tar archive without trusting it.
//!
//! Every folder and file is made by us, below the given folder, and nothing that
//! exists is ever opened. Links are made last, when nothing is written any more,
//! so that none is ever followed. Devices, hard links, sockets and entries that
//! leave the folder are refused.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType};

/// Most entries in an archive.
const MAX_ENTRIES: usize = 100_000;
/// Longest path in an archive, in bytes.
const MAX_PATH: usize = 1024;
/// Deepest path in an archive.
const MAX_DEPTH: usize = 64;

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
    #[error("it has no files")]
    Empty,
    /// Too many entries.
    #[error("it has more than {MAX_ENTRIES} entries")]
    TooMany,
    /// The content is too long.
    #[error("its content is larger than {max_bytes} bytes")]
    TooLarge {
        /// The most that is allowed.
        max_bytes: u64,
    },
    /// A path leaves the folder, is too long or too deep.
    #[error("the path {path:?} is not allowed")]
    Path {
        /// The path, cut to a readable length.
        path: String,
    },
    /// An entry is neither file, folder nor symbolic link.
    #[error("{path:?} is neither a file, a folder nor a symbolic link")]
    Kind {
        /// Which entry.
        path: String,
    },
    /// Two entries of one name.
    #[error("{path:?} is there twice")]
    Twice {
        /// Which entry.
        path: String,
    },
}

fn io_error(operation: &'static str) -> impl FnOnce(io::Error) -> UnpackError {
    move |source| UnpackError::Io { operation, source }
}

/// Unpacks into the empty folder `to`; at most `max_bytes` of content.
pub(super) fn unpack(archive: impl Read, to: &Path, max_bytes: u64) -> Result<(), UnpackError> {
    let mut archive = Archive::new(archive);
    let mut unpacker = Unpacker {
        to,
        left: max_bytes,
        max_bytes,
        links: Vec::new(),
    };
    let mut files = 0_usize;
    for (count, entry) in archive
        .entries()
        .map_err(io_error("reading the archive"))?
        .enumerate()
    {
        if count >= MAX_ENTRIES {
            return Err(UnpackError::TooMany);
        }
        let mut entry = entry.map_err(io_error("reading the archive"))?;
        let path = {
            let bytes = entry.path_bytes();
            relative(&bytes)?
        };
        let readable = || readable(&path);
        match entry.header().entry_type() {
            EntryType::Directory => unpacker.folder(&path)?,
            EntryType::Regular | EntryType::Continuous => {
                let executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
                unpacker.file(&path, executable, &mut entry)?;
                files += 1;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().map(|bytes| bytes.into_owned());
                unpacker.link(path, target.unwrap_or_default())?;
            }
            EntryType::XGlobalHeader => {}
            _ => return Err(UnpackError::Kind { path: readable() }),
        }
    }
    if files == 0 {
        return Err(UnpackError::Empty);
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    to: &'a Path,
    left: u64,
    max_bytes: u64,
    links: Vec<(PathBuf, Vec<u8>)>,
}

impl Unpacker<'_> {
    fn folder(&self, path: &Path) -> Result<(), UnpackError> {
        // Only folders of ours exist on the way: links come last.
        match fs::create_dir_all(self.to.join(path)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(UnpackError::Twice {
                path: readable(path),
            }),
            Err(error) => Err(io_error("creating a folder")(error)),
        }
    }

    fn parent(&self, path: &Path) -> Result<(), UnpackError> {
        path.parent().map_or(Ok(()), |parent| self.folder(parent))
    }

    fn file(
        &mut self,
        path: &Path,
        executable: bool,
        content: &mut impl Read,
    ) -> Result<(), UnpackError> {
        self.parent(path)?;
        let mut file = match File::options()
            .write(true)
            .create_new(true)
            .open(self.to.join(path))
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(UnpackError::Twice {
                    path: readable(path),
                });
            }
            Err(error) => return Err(io_error("creating a file")(error)),
        };
        // One byte more than allowed, to see that there is one.
        let mut limited = content.take(self.left.saturating_add(1));
        let written = io::copy(&mut limited, &mut file).map_err(io_error("unpacking a file"))?;
        let Some(left) = self.left.checked_sub(written) else {
            return Err(UnpackError::TooLarge {
                max_bytes: self.max_bytes,
            });
        };
        self.left = left;
        // The function does not run as root: everybody may read.
        let mode = if executable { 0o755 } else { 0o644 };
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(io_error("setting a mode"))
    }

    fn link(&mut self, path: PathBuf, target: Vec<u8>) -> Result<(), UnpackError> {
        if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
            return Err(UnpackError::Path {
                path: readable(&path),
            });
        }
        self.parent(&path)?;
        self.links.push((path, target));
        Ok(())
    }

    fn finish(self) -> Result<(), UnpackError> {
        use std::ffi::OsString;
        use std::os::unix::ffi::OsStringExt as _;

        let mut seen = BTreeSet::new();
        // A link's parent could be a link made before it: refuse that.
        for (path, _) in &self.links {
            seen.insert(path.as_path());
        }
        for (path, _) in &self.links {
            if path.ancestors().skip(1).any(|above| seen.contains(above)) {
                return Err(UnpackError::Path {
                    path: readable(path),
                });
            }
        }
        for (path, target) in self.links {
            match symlink(OsString::from_vec(target), self.to.join(&path)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(UnpackError::Twice {
                        path: readable(&path),
                    });
                }
                Err(error) => return Err(io_error("creating a link")(error)),
            }
        }
        Ok(())
    }
}

/// The path within the folder.
fn relative(bytes: &[u8]) -> Result<PathBuf, UnpackError> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let path = Path::new(OsStr::from_bytes(bytes));
    let refused = || UnpackError::Path {
        path: readable(path),
    };
    if bytes.len() > MAX_PATH || bytes.contains(&0) {
        return Err(refused());
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(refused());
            }
        }
    }
    if clean.components().count() > MAX_DEPTH {
        return Err(refused());
    }
    Ok(clean)
}

fn readable(path: &Path) -> String {
    path.to_string_lossy().chars().take(100).collect()
}
