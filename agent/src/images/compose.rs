//! Puts a function's code and its layers together, from images that are ours.

use std::fs;
use std::io;
use std::path::Path;

/// Where a package's files are in its image, and where those of layers are in a function's.
const CODE: &str = "task";
const LAYERS: &str = "opt";

/// Code and layers do not go together.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// The file system does not play along.
    #[error("{operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A container image cannot be a layer.
    #[error("layer {number} is a container image: a layer is a folder or a zip")]
    Container {
        /// Which layer, from 1.
        number: usize,
    },
    /// All together are too large.
    #[error(
        "together they have {bytes} bytes, and may have {max_bytes}: leave out what is not \
         needed, or raise `limits.max_code_mib`"
    )]
    TooLarge {
        /// What they have.
        bytes: u64,
        /// The most that is allowed.
        max_bytes: u64,
    },
}

fn io_error(operation: &'static str) -> impl FnOnce(io::Error) -> ComposeError {
    move |source| ComposeError::Io { operation, source }
}

/// Moves what is in the extracted layer on top of the layers that `tree` has.
pub(super) fn add_layer(tree: &Path, layer: &Path, number: usize) -> Result<(), ComposeError> {
    let from = layer.join(CODE);
    if !from.is_dir() {
        return Err(ComposeError::Container { number });
    }
    let to = tree.join(LAYERS);
    match fs::create_dir(&to) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io_error("creating a folder for layers")(error));
        }
        _ => {}
    }
    merge(&from, &to).map_err(io_error("putting layers together"))
}

/// Moves everything from one folder to another one. Folders are put together; of two other
/// things of one name, the moved one stays. No link is followed.
fn merge(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        let present = match place.symlink_metadata() {
            Ok(metadata) => Some(metadata.is_dir()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        match (entry.file_type()?.is_dir(), present) {
            (true, Some(true)) => merge(&entry.path(), &place)?,
            (_, Some(true)) => {
                fs::remove_dir_all(&place)?;
                fs::rename(entry.path(), &place)?;
            }
            (_, Some(false)) => {
                fs::remove_file(&place)?;
                fs::rename(entry.path(), &place)?;
            }
            (_, None) => fs::rename(entry.path(), &place)?,
        }
    }
    Ok(())
}

/// Checks that everything together is not too large.
pub(super) fn check_size(tree: &Path, max_bytes: u64) -> Result<(), ComposeError> {
    let bytes = size(tree).map_err(io_error("measuring the code and its layers"))?;
    if bytes > max_bytes {
        return Err(ComposeError::TooLarge { bytes, max_bytes });
    }
    Ok(())
}

fn size(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0_u64;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes = bytes.saturating_add(if metadata.is_dir() {
            size(&entry.path())?
        } else if metadata.is_file() {
            metadata.len()
        } else {
            0
        });
    }
    Ok(bytes)
}
