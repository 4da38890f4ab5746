//! Writes a finished tree into an empty folder.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::refused::{UnpackError, io_error};
use super::spool::Spool;
use super::tree::{Folder, Node, Tree};

/// The function does not run as root: everybody may read everything.
const FOLDER: u32 = 0o755;
const FILE: u32 = 0o644;
const PROGRAM: u32 = 0o755;

/// Makes the folder `to` with what the tree has. Contents are linked from the spool.
///
/// # Errors
/// When the file system does not play along.
pub fn write(tree: &Tree, to: &Path, spool: &Spool) -> Result<(), UnpackError> {
    let mut links = Vec::new();
    folder(tree.root(), to, spool, &mut links)?;
    // Last, when nothing is made any more: none is ever followed.
    for (path, target) in links {
        symlink(OsStr::from_bytes(target), path).map_err(io_error("unpacking"))?;
    }
    Ok(())
}

fn folder<'a>(
    from: &'a Folder,
    to: &Path,
    spool: &Spool,
    links: &mut Vec<(PathBuf, &'a [u8])>,
) -> Result<(), UnpackError> {
    fs::create_dir(to)
        .and_then(|()| fs::set_permissions(to, Permissions::from_mode(FOLDER)))
        .map_err(io_error("unpacking"))?;
    for (name, node) in from.iter() {
        let place = to.join(OsStr::from_bytes(name));
        match node {
            Node::Folder(inner) => folder(inner, &place, spool, links)?,
            Node::File(content) => {
                let mode = if content.executable { PROGRAM } else { FILE };
                file(&spool.path(*content), &place, mode).map_err(io_error("unpacking"))?;
            }
            Node::Link(target) => links.push((place, target)),
        }
    }
    Ok(())
}

fn file(spooled: &Path, place: &Path, mode: u32) -> io::Result<()> {
    fs::hard_link(spooled, place)?;
    fs::set_permissions(place, Permissions::from_mode(mode))
}
