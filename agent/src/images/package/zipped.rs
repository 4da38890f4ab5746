//! Zip archives.
//!
//! A zip has its names twice, and readers differ on which of them counts, on what an archive
//! with two tables of contents means, and on two entries of one name. Such archives are refused:
//! the table is walked here first, and the library must then see the same one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};

use zip::ZipArchive;
use zip::result::ZipError;

use super::budget::{Budget, MAX_ENTRIES};
use super::path::{MAX_PATH, parse};
use super::refused::{UnpackError, io_error, readable};
use super::spool::{READING, Spool};
use super::tree::Tree;

const END: &[u8; 4] = b"PK\x05\x06";
/// Of the record at the end, without its comment.
const END_LEN: usize = 22;
/// Longest comment: the record is looked for so far from the end.
const MAX_COMMENT: u64 = 65_535;
const TABLE_ENTRY: &[u8; 4] = b"PK\x01\x02";
const TABLE_ENTRY_LEN: usize = 46;
/// Longest table: each entry has its name and some more.
const MAX_TABLE: u64 = 64 * 1024 * 1024;

/// The kind of a file in its Unix mode.
const KIND_MASK: u32 = 0o170_000;
const KIND_FILE: u32 = 0o100_000;
const KIND_FOLDER: u32 = 0o040_000;
const KIND_LINK: u32 = 0o120_000;

/// Reads a package's entries into `tree`.
///
/// # Errors
/// When the archive is damaged or refused.
pub fn read(
    mut archive: File,
    tree: &mut Tree,
    spool: &mut Spool,
    budget: &mut Budget,
) -> Result<(), UnpackError> {
    let table = Table::find(&mut archive)?;
    let count = table.check_names(&mut archive)?;
    archive
        .seek(SeekFrom::Start(0))
        .map_err(io_error("reading the zip"))?;
    let whole = |source| UnpackError::ZipEntry {
        path: String::new(),
        source,
    };
    let mut zip = ZipArchive::new(archive).map_err(whole)?;
    if zip.len() != count || zip.central_directory_start() != table.start {
        return Err(UnpackError::Zip("it has more than one table of contents"));
    }
    let names: Vec<_> = zip.file_names_raw().map(<[u8]>::to_vec).collect();
    for (index, name) in names.iter().enumerate() {
        budget.entry()?;
        entry(&mut zip, index, name, tree, spool, budget)?;
    }
    Ok(())
}

fn entry(
    zip: &mut ZipArchive<File>,
    index: usize,
    name: &[u8],
    tree: &mut Tree,
    spool: &mut Spool,
    budget: &mut Budget,
) -> Result<(), UnpackError> {
    let failed = |source: ZipError| UnpackError::ZipEntry {
        path: readable(name),
        source,
    };
    let mut file = zip.by_index(index).map_err(failed)?;
    let path = parse(name)?;
    let mode = file.unix_mode().unwrap_or(0);
    let folder = name.ends_with(b"/");
    match mode & KIND_MASK {
        0 | KIND_FILE if !folder => {
            let content = spool.keep(&mut file, mode & 0o111 != 0, budget);
            tree.add_file(&path, content.map_err(|error| unreadable(error, name))?)
        }
        0 | KIND_FILE | KIND_FOLDER => tree.add_folder(&path),
        KIND_LINK => {
            let limit = u64::try_from(MAX_PATH).unwrap_or(0) + 1;
            let mut target = Vec::new();
            file.take(limit)
                .read_to_end(&mut target)
                .map_err(io_error("reading the zip"))?;
            tree.add_link(&path, &target)
        }
        _ => Err(UnpackError::Kind {
            path: readable(name),
            kind: "device, pipe or socket",
        }),
    }
}

/// Names the entry whose content cannot be read, and leaves every other error as it is.
fn unreadable(error: UnpackError, name: &[u8]) -> UnpackError {
    match error {
        UnpackError::Io {
            operation: READING,
            source,
        } => UnpackError::ZipEntry {
            path: readable(name),
            source: source.into(),
        },
        error => error,
    }
}

/// Where the table of contents is.
struct Table {
    start: u64,
    len: u64,
    entries: u16,
}

impl Table {
    fn find(archive: &mut File) -> Result<Self, UnpackError> {
        let failed = || io_error("reading the zip");
        let len = archive.seek(SeekFrom::End(0)).map_err(failed())?;
        let end_len = u64::try_from(END_LEN).unwrap_or(0);
        let from = len.saturating_sub(MAX_COMMENT + end_len);
        let mut tail = Vec::new();
        archive
            .seek(SeekFrom::Start(from))
            .and_then(|_| archive.read_to_end(&mut tail))
            .map_err(failed())?;
        // The one whose comment reaches exactly to the end of the file.
        let record = (0..tail.len().saturating_sub(END_LEN - 1))
            .rev()
            .find(|at| {
                let record = &tail[*at..];
                record.starts_with(END) && END_LEN + usize::from(u16_at(record, 20)) == record.len()
            });
        let Some(at) = record else {
            return Err(UnpackError::Zip("it has no end: was it cut off?"));
        };
        let record = &tail[at..];
        let table = Self {
            entries: u16_at(record, 10),
            len: u64::from(u32_at(record, 12)),
            start: u64::from(u32_at(record, 16)),
        };
        let large = table.entries == u16::MAX || u32_at(record, 16) == u32::MAX;
        if large || u16_at(record, 4) != 0 || u16_at(record, 8) != table.entries {
            return Err(UnpackError::Zip(
                "it is in several parts, or in the 64-bit format",
            ));
        }
        let end = from + u64::try_from(at).unwrap_or(u64::MAX);
        if table.len > MAX_TABLE || table.start.saturating_add(table.len) != end {
            return Err(UnpackError::Zip(
                "its table of contents is not where it should be",
            ));
        }
        Ok(table)
    }

    /// Walks the table; the result is how many entries it has, no two of one name.
    fn check_names(&self, archive: &mut File) -> Result<usize, UnpackError> {
        let mut table = Vec::new();
        archive
            .seek(SeekFrom::Start(self.start))
            .and_then(|_| archive.take(self.len).read_to_end(&mut table))
            .map_err(io_error("reading the zip"))?;
        let mut names = BTreeSet::new();
        let mut rest = table.as_slice();
        while rest.len() >= TABLE_ENTRY_LEN && rest.starts_with(TABLE_ENTRY) {
            let name_len = usize::from(u16_at(rest, 28));
            let more = usize::from(u16_at(rest, 30)) + usize::from(u16_at(rest, 32));
            let name = rest.get(TABLE_ENTRY_LEN..TABLE_ENTRY_LEN + name_len);
            let after = rest.get(TABLE_ENTRY_LEN + name_len + more..);
            let (Some(name), Some(after)) = (name, after) else {
                break;
            };
            if !names.insert(name) {
                return Err(UnpackError::Twice {
                    path: readable(name),
                });
            }
            if names.len() > MAX_ENTRIES {
                return Err(UnpackError::TooMany);
            }
            rest = after;
        }
        if !rest.is_empty() || names.len() != usize::from(self.entries) {
            return Err(UnpackError::Zip("its table of contents is damaged"));
        }
        Ok(names.len())
    }
}

/// A number within a record that is known to be long enough.
fn u16_at(record: &[u8], at: usize) -> u16 {
    let bytes = record.get(at..at + 2).and_then(|b| b.try_into().ok());
    bytes.map_or(0, u16::from_le_bytes)
}

fn u32_at(record: &[u8], at: usize) -> u32 {
    let bytes = record.get(at..at + 4).and_then(|b| b.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}
