//! Functions' code as read-only images.
//!
//! ```text
//!  tar (from a caller, untrusted) ─► unpack ─► mkfs.erofs ─► <state>/images/<hash>.erofs
//! ```
//!
//! An image is named by its hash: the same code is stored once.

mod digests;
mod pack;
mod unpack;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use snapback_vmm::snapshot::Digest;

pub use digests::DigestCache;
pub use pack::PackError;
pub use unpack::UnpackError;

/// What unfinished work begins with.
const DRAFT_PREFIX: &str = ".draft-";
const EXTENSION: &str = "erofs";

/// An image could not be made or found.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file gave an error.
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
    /// The archive is refused.
    #[error("the code archive is refused")]
    Unpack(#[from] UnpackError),
    /// The image could not be packed.
    #[error("the code could not be packed")]
    Pack(#[from] PackError),
    /// A task of ours was cut off.
    #[error("packing was cut off")]
    CutOff(#[from] tokio::task::JoinError),
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Io {
        operation,
        path,
        source,
    }
}

/// The images of one state directory.
#[derive(Debug)]
pub struct Images {
    directory: PathBuf,
    max_bytes: u64,
    pack_limit: Duration,
}

impl Images {
    /// Opens (or makes) the directory and removes unfinished work.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open(
        directory: PathBuf,
        max_bytes: u64,
        pack_limit: Duration,
    ) -> Result<Self, ImageError> {
        fs::create_dir_all(&directory).map_err(io_error("creating", &directory))?;
        let images = Self {
            directory,
            max_bytes,
            pack_limit,
        };
        images.sweep(|name| name.starts_with(DRAFT_PREFIX));
        Ok(images)
    }

    /// An empty directory for a caller's archive, removed when it is dropped.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn workspace(&self) -> Result<tempfile::TempDir, ImageError> {
        tempfile::Builder::new()
            .prefix(DRAFT_PREFIX)
            .tempdir_in(&self.directory)
            .map_err(io_error("creating a directory in", &self.directory))
    }

    /// The longest archive that is taken, in bytes: the code and its headers.
    #[must_use]
    pub const fn max_archive(&self) -> u64 {
        self.max_bytes + self.max_bytes / 4 + 1024 * 1024
    }

    /// Makes an image of the tar archive at `archive` within `workspace`.
    ///
    /// # Errors
    /// When the archive is refused or cannot be packed.
    pub async fn import(
        &self,
        workspace: &tempfile::TempDir,
        archive: PathBuf,
    ) -> Result<Digest, ImageError> {
        let tree = workspace.path().join("tree");
        let image = workspace.path().join("image");
        let (max_bytes, to) = (self.max_bytes, tree.clone());
        tokio::task::spawn_blocking(move || {
            let file = File::open(&archive).map_err(io_error("opening", &archive))?;
            fs::create_dir(&to).map_err(io_error("creating", &to))?;
            unpack::unpack(file, &to, max_bytes).map_err(ImageError::from)
        })
        .await??;
        pack::pack(&tree, &image, self.pack_limit).await?;
        let directory = self.directory.clone();
        tokio::task::spawn_blocking(move || store(&image, &directory)).await?
    }

    /// Where an image is, whether it exists or not.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(format!("{digest}.{EXTENSION}"))
    }

    /// Whether there is such an image.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Removes every image that is not in `used`.
    pub fn keep_only(&self, used: &[Digest]) {
        self.sweep(|name| {
            name.strip_suffix(EXTENSION)
                .and_then(|name| name.strip_suffix('.'))
                .and_then(|hash| Digest::try_from(hash.to_owned()).ok())
                .is_some_and(|digest| !used.contains(&digest))
        });
    }

    fn sweep(&self, unwanted: impl Fn(&str) -> bool) {
        for entry in fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_name().to_str().is_some_and(&unwanted) {
                let path = entry.path();
                let removed = if path.is_dir() {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                if let Err(error) = removed {
                    tracing::warn!(path = %path.display(), %error, "this cannot be removed");
                }
            }
        }
    }
}

fn store(image: &Path, directory: &Path) -> Result<Digest, ImageError> {
    let file = File::open(image).map_err(io_error("opening", image))?;
    file.sync_all().map_err(io_error("syncing", image))?;
    let digest = Digest::of_reader(&file).map_err(io_error("reading", image))?;
    let path = directory.join(format!("{digest}.{EXTENSION}"));
    fs::rename(image, &path).map_err(io_error("renaming to", &path))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("syncing", directory))?;
    Ok(digest)
}

#[cfg(test)]
mod tests;
