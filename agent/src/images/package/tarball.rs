//! Tar archives.
//!
//! The library's own treatment of long names would keep as many bytes in memory as an
//! archive claims a name has. So it hands over the raw entries, and the two dialects' long
//! names are read here, with a limit.

use std::io::Read;

use tar::{Archive, Entry, EntryType, PaxExtensions};

use super::budget::Budget;
use super::path::{Name, parse};
use super::refused::{UnpackError, io_error, readable};
use super::spool::Spool;
use super::tree::Tree;

/// Longest extended header, in bytes. Names are checked again, and shorter.
const MAX_EXTENSION: u64 = 64 * 1024;

/// An entry of an archive, ready to be put into a tree.
pub enum Item<'a, 'e, R: Read> {
    /// A folder.
    Folder(Vec<Name>),
    /// A file; whether it may be executed, and its content.
    File(Vec<Name>, bool, &'a mut Entry<'e, R>),
    /// A symbolic link and where it leads.
    Link(Vec<Name>, Vec<u8>),
    /// A hard link and the file that it is another name of.
    HardLink(Vec<Name>, Vec<u8>),
}

/// Where a header says that it is one, and what it says there in both dialects (POSIX and
/// GNU); an archive of nothing begins with zeroes.
const MAGIC_AT: usize = 257;
const MAGIC: &[u8] = b"ustar";

/// Whether an archive's first bytes are a tar archive's.
pub fn begins_with(start: &[u8]) -> bool {
    let magic = start.get(MAGIC_AT..).unwrap_or_default();
    magic.starts_with(MAGIC) || (!magic.is_empty() && start.iter().all(|byte| *byte == 0))
}

/// Reads a package's entries into `tree`.
///
/// # Errors
/// When the archive is damaged or refused.
pub fn read(
    archive: impl Read,
    tree: &mut Tree,
    spool: &mut Spool,
    budget: &mut Budget,
) -> Result<(), UnpackError> {
    each(archive, budget, |item, budget| match item {
        Item::Folder(path) => tree.add_folder(&path),
        Item::File(path, executable, content) => {
            let content = spool.keep(content, executable, budget)?;
            tree.add_file(&path, content)
        }
        Item::Link(path, target) => tree.add_link(&path, &target),
        Item::HardLink(path, _) => Err(UnpackError::Kind {
            path: readable(&path.join(&b'/')),
            kind: "hard link",
        }),
    })
}

/// What extended headers say about the entry after them.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

/// Calls `take` with each entry.
///
/// # Errors
/// When the archive is damaged, an entry is of a kind that no package has, or `take` refuses.
pub fn each<R: Read>(
    archive: R,
    budget: &mut Budget,
    mut take: impl FnMut(Item<'_, '_, R>, &mut Budget) -> Result<(), UnpackError>,
) -> Result<(), UnpackError> {
    let mut archive = Archive::new(archive);
    let damaged = || io_error("reading the tar archive");
    let mut extended = Extended::default();
    for entry in archive.entries().map_err(damaged())?.raw(true) {
        let mut entry = entry.map_err(damaged())?;
        budget.entry()?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::GNULongName => extended.path = Some(long_text(&mut entry, budget)?),
            EntryType::GNULongLink => extended.target = Some(long_text(&mut entry, budget)?),
            EntryType::XHeader => pax(&extension(&mut entry, budget)?, &mut extended)?,
            EntryType::XGlobalHeader => drop(extension(&mut entry, budget)?),
            _ => {
                let Extended { path, target } = std::mem::take(&mut extended);
                let raw = path.unwrap_or_else(|| entry.path_bytes().into_owned());
                let target = target
                    .or_else(|| entry.link_name_bytes().map(|bytes| bytes.into_owned()))
                    .unwrap_or_default();
                let path = parse(&raw)?;
                take(item(kind, path, target, &mut entry)?, budget)?;
            }
        }
    }
    Ok(())
}

fn item<'a, 'e, R: Read>(
    kind: EntryType,
    path: Vec<Name>,
    target: Vec<u8>,
    entry: &'a mut Entry<'e, R>,
) -> Result<Item<'a, 'e, R>, UnpackError> {
    let special = |kind| {
        let path = readable(&path.join(&b'/'));
        Err(UnpackError::Kind { path, kind })
    };
    match kind {
        // Old archives mark folders by a slash alone.
        EntryType::Regular | EntryType::Continuous if entry.path_bytes().ends_with(b"/") => {
            Ok(Item::Folder(path))
        }
        EntryType::Regular | EntryType::Continuous => {
            let executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
            Ok(Item::File(path, executable, entry))
        }
        EntryType::Directory => Ok(Item::Folder(path)),
        EntryType::Symlink => Ok(Item::Link(path, target)),
        EntryType::Link => Ok(Item::HardLink(path, target)),
        EntryType::Char => special("character device"),
        EntryType::Block => special("block device"),
        EntryType::Fifo => special("named pipe"),
        EntryType::GNUSparse => special("sparse file"),
        _ => special("entry of an unknown kind"),
    }
}

fn extension<R: Read>(
    entry: &mut Entry<'_, R>,
    budget: &mut Budget,
) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    entry
        .take(MAX_EXTENSION + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("reading the tar archive"))?;
    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if len > MAX_EXTENSION {
        return Err(UnpackError::Tar("an extended header is too long"));
    }
    budget.take(len)?;
    Ok(bytes)
}

/// A long name, which ends with a zero byte.
fn long_text<R: Read>(
    entry: &mut Entry<'_, R>,
    budget: &mut Budget,
) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = extension(entry, budget)?;
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

fn pax(bytes: &[u8], extended: &mut Extended) -> Result<(), UnpackError> {
    for record in PaxExtensions::new(bytes) {
        let record =
            record.map_err(|_| UnpackError::Tar("an extended header cannot be understood"))?;
        let value = || record.value_bytes().to_vec();
        match record.key_bytes() {
            b"path" => extended.path = Some(value()),
            b"linkpath" => extended.target = Some(value()),
            // Beyond 8 GiB, or meant to make two readers see different archives.
            b"size" => return Err(UnpackError::Tar("an extended header changes a file's size")),
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(UnpackError::Tar("it has sparse files"));
            }
            _ => {}
        }
    }
    Ok(())
}
