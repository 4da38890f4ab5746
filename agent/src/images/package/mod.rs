//! Packages of code, as callers bring them: a folder (as a tar archive), a zip, a container
//! image (an OCI image layout, as a tar archive).
//!
//! ```text
//!  tar ──┐                                        ┌─ task/…            a folder or a zip
//!  zip ──┴─► entries ─► Tree (in memory) ─► files ┤
//!                          ▲    contents in       └─ root/…, process/  a container image
//!           OCI: layer by layer  a spool
//! ```
//!
//! Nothing of this is trusted. No path of an archive ever names a file of the host: what an
//! archive says is a [`Tree`] in memory until it is whole and valid, contents are numbered
//! files in a spool, and in the end we make folders and files by names that were checked, in
//! an empty folder, symbolic links last. So no link is ever followed on the host.

mod budget;
mod oci;
mod path;
mod refused;
mod spool;
mod tarball;
mod tree;
mod write;
mod zipped;

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

pub use refused::UnpackError;

use budget::Budget;
use refused::io_error;
use spool::Spool;
use tree::{Links, Tree};

/// What a package holds, and so where the guest mounts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A function's own folder, or a layer.
    Folder,
    /// The whole root file system of a container image, with the command to run.
    Container,
}

/// What a zip begins with; the second is one without files.
const ZIP_MAGICS: [&[u8]; 2] = [b"PK\x03\x04", b"PK\x05\x06"];
const GZIP_MAGIC: &[u8] = b"\x1f\x8b";
/// As much of an archive says what it is, in bytes: a tar archive's first header.
const START: u64 = 512;

/// Unpacks the archive below the empty folder `to`, with `scratch` (an empty folder on the same
/// file system) for contents; at most `max_bytes` of content.
///
/// # Errors
/// When the archive is refused.
pub fn unpack(
    mut archive: File,
    to: &Path,
    scratch: &Path,
    max_bytes: u64,
) -> Result<Kind, UnpackError> {
    let archive_bytes = archive
        .metadata()
        .map_err(io_error("reading the archive"))?
        .len();
    let mut budget = Budget::new(max_bytes, archive_bytes);
    let mut spool = Spool::new(scratch);
    let mut tree = Tree::new(Links::Refused);
    let start = read_start(&mut archive)?;
    if ZIP_MAGICS.iter().any(|magic| start.starts_with(magic)) {
        zipped::read(archive, &mut tree, &mut spool, &mut budget)?;
    } else if tarball::begins_with(&start) {
        tarball::read(archive, &mut tree, &mut spool, &mut budget)?;
    } else if start.starts_with(GZIP_MAGIC) {
        return Err(UnpackError::Compressed);
    } else {
        return Err(UnpackError::Unknown);
    }
    if oci::is_layout(&tree) {
        let image = oci::apply(&tree, &mut spool, max_bytes)?;
        image.write(to, &spool)?;
        return Ok(Kind::Container);
    }
    if tree.files() == 0 {
        return Err(UnpackError::Empty);
    }
    write::write(&tree, &to.join("task"), &spool)?;
    Ok(Kind::Folder)
}

/// Reads what there is of the first bytes, and goes back.
fn read_start(archive: &mut File) -> Result<Vec<u8>, UnpackError> {
    let mut start = Vec::new();
    archive
        .by_ref()
        .take(START)
        .read_to_end(&mut start)
        .and_then(|_| archive.seek(SeekFrom::Start(0)))
        .map_err(io_error("reading the archive"))?;
    Ok(start)
}

#[cfg(test)]
mod tests;
