//! Functions' code as read-only images.
//!
//! ```text
//!  folder, zip, container image (untrusted) ─► package ─► mkfs.erofs ─► <state>/images/<hash>.erofs
//!  images of code and layers ─► compose ─► mkfs.erofs ─┘
//! ```
//!
//! An image is named by its hash: the same code is stored once. What is in one, at its top
//! level, is what the guest mounts (`guest-init/src/mounts.rs`):
//!
//! ```text
//!  task/                 at /var/task
//!  opt/                  at /opt: the function's layers, put together
//!  root/, process/       a container image's root file system, and the command to run in it
//! ```

mod compose;
mod digests;
mod pack;
mod package;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use snapback_vmm::snapshot::Digest;

pub use compose::ComposeError;
pub use digests::DigestCache;
pub use pack::PackError;
pub use package::{Kind, UnpackError};

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
    /// Code and layers do not go together.
    #[error("the code and its layers cannot be put together")]
    Compose(#[from] ComposeError),
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

    /// Makes an image of the archive at `archive` within `workspace`.
    ///
    /// # Errors
    /// When the archive is refused or cannot be packed.
    pub async fn import(
        &self,
        workspace: &tempfile::TempDir,
        archive: PathBuf,
    ) -> Result<Digest, ImageError> {
        let tree = workspace.path().join("tree");
        let scratch = workspace.path().join("contents");
        let (max_bytes, to) = (self.max_bytes, tree.clone());
        let kind = tokio::task::spawn_blocking(move || {
            let file = File::open(&archive).map_err(io_error("opening", &archive))?;
            for folder in [&to, &scratch] {
                fs::create_dir(folder).map_err(io_error("creating", folder))?;
            }
            package::unpack(file, &to, &scratch, max_bytes).map_err(ImageError::from)
        })
        .await??;
        self.pack_and_store(workspace, &tree, kind).await
    }

    /// Makes the image of a function with layers: the code's image, and below `/opt` the layers
    /// in their order, of which a later one replaces files of an earlier one.
    ///
    /// # Errors
    /// When one is not there or a container image, or all together are too large.
    pub async fn compose(&self, code: &Digest, layers: &[Digest]) -> Result<Digest, ImageError> {
        let workspace = self.workspace()?;
        let tree = workspace.path().join("tree");
        let images: Vec<_> = layers.iter().map(|layer| self.path(layer)).collect();
        pack::extract(&self.path(code), &tree, self.pack_limit).await?;
        for (number, image) in images.iter().enumerate() {
            let layer = workspace.path().join(format!("layer-{number}"));
            pack::extract(image, &layer, self.pack_limit).await?;
            let (tree, number) = (tree.clone(), number + 1);
            tokio::task::spawn_blocking(move || compose::add_layer(&tree, &layer, number))
                .await??;
        }
        let (whole, max_bytes) = (tree.clone(), self.max_bytes);
        tokio::task::spawn_blocking(move || compose::check_size(&whole, max_bytes)).await??;
        self.pack_and_store(&workspace, &tree, Kind::Folder).await
    }

    /// What an image of this directory holds.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn kind(&self, digest: &Digest) -> Result<Kind, ImageError> {
        let path = self.path(digest);
        pack::kind(&path).map_err(io_error("reading", &path))
    }

    async fn pack_and_store(
        &self,
        workspace: &tempfile::TempDir,
        tree: &Path,
        kind: Kind,
    ) -> Result<Digest, ImageError> {
        let image = workspace.path().join("image");
        pack::pack(tree, &image, kind, self.pack_limit).await?;
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

/// Puts a finished image in its place. One that is there stays: microVMs have it open.
fn store(image: &Path, directory: &Path) -> Result<Digest, ImageError> {
    let file = File::open(image).map_err(io_error("opening", image))?;
    file.sync_all().map_err(io_error("syncing", image))?;
    let digest = Digest::of_reader(&file).map_err(io_error("reading", image))?;
    let path = directory.join(format!("{digest}.{EXTENSION}"));
    match fs::hard_link(image, &path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let present = File::open(&path).and_then(Digest::of_reader);
            // Unless it was damaged: nobody can use that one.
            if !present.is_ok_and(|present| present == digest) {
                fs::rename(image, &path).map_err(io_error("renaming to", &path))?;
            }
        }
        linked => linked.map_err(io_error("linking to", &path))?,
    }
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("syncing", directory))?;
    Ok(digest)
}

#[cfg(test)]
mod tests;
