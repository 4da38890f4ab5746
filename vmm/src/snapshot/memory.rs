//! The memory file: a guest's memory with holes for its zero pages, and a hash for
//! each 2 MiB of its logical content.
//!
//! ```text
//!  memfd of the paused guest ── write ──► memory (sparse) + hashes for snapshot.json
//!  memory (imported)         ── verify ─► the first damaged chunk, or nothing
//! ```
//!
//! Both walk the data of the source (`SEEK_DATA`) and never read its holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::LazyLock;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::Digest;
use crate::memory::PAGE_SIZE;

/// One MiB, in bytes.
pub const MIB: u64 = 1024 * 1024;

/// How many bytes one hash covers. The last chunk of a memory may be shorter.
pub const CHUNK_LEN: u64 = 2 * MIB;

/// Largest guest memory, in MiB.
pub const MAX_MEMORY_MIB: u32 = 16 * 1024;

const CHUNK: usize = 2 * 1024 * 1024;
const _: () = assert!(CHUNK == 0x20_0000 && CHUNK.is_multiple_of(PAGE_SIZE));
const _: () = assert!(CHUNK_LEN == 0x20_0000 && MAX_MEMORY_MIB == 0x4000);

static ZEROES: [u8; CHUNK] = [0; CHUNK];
static ZERO_HASH: LazyLock<Digest> = LazyLock::new(|| Digest::of(&ZEROES));

/// What [`write`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryWritten {
    /// Logical length, in bytes.
    pub len: u64,
    /// The hash of each chunk, in order.
    pub chunks: Vec<Digest>,
    /// Pages that are not all zero, and so take space in the file.
    pub data_pages: u64,
}

/// A memory file could not be written or is not what its hashes say.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The length is zero, over the largest memory or not of whole pages.
    #[error("a memory of {0} bytes is not possible")]
    ImpossibleLength(u64),
    /// A file's length is another.
    #[error("the memory has {found} bytes instead of {expected}")]
    Length {
        /// Of the file, in bytes.
        found: u64,
        /// What was asked for, in bytes.
        expected: u64,
    },
    /// There is not one hash for each chunk.
    #[error("the memory has {expected} chunks of 2 MiB, and there are {found} hashes")]
    Hashes {
        /// How many hashes there are.
        found: usize,
        /// How many there must be.
        expected: usize,
    },
    /// A chunk's hash is another.
    #[error("memory chunk {chunk} (offset {offset:#x}): hash does not match")]
    Damaged {
        /// Which chunk, from 0.
        chunk: usize,
        /// Where it begins, in bytes.
        offset: u64,
    },
    /// The source could not be read.
    #[error("the memory cannot be read at offset {offset:#x}")]
    Read {
        /// In bytes.
        offset: u64,
        /// What the system call reports.
        #[source]
        source: io::Error,
    },
    /// The destination could not be written.
    #[error("the memory file cannot be written at offset {offset:#x}")]
    Write {
        /// In bytes.
        offset: u64,
        /// What the system call reports.
        #[source]
        source: io::Error,
    },
    /// The destination has content already.
    #[error("the memory file to be written is not empty")]
    NotEmpty,
}

/// How many chunks a memory of `len` bytes has.
#[must_use]
pub fn chunk_count(len: u64) -> usize {
    usize::try_from(len.div_ceil(CHUNK_LEN)).unwrap_or(usize::MAX)
}

/// Copies the memory in `source` (a memfd of exactly `len` bytes, whose guest is
/// stopped) into `destination` (an empty file), leaving a hole for each zero page,
/// and hashes it. Nothing is synced to disk. The offset of `source` is moved.
///
/// # Errors
/// When a length is wrong, the destination is not empty, or a file fails.
pub fn write(source: &File, destination: &File, len: u64) -> Result<MemoryWritten, MemoryError> {
    check_len(source, len)?;
    let write_error = |offset| move |source| MemoryError::Write { offset, source };
    if destination.metadata().map_err(write_error(0))?.len() != 0 {
        return Err(MemoryError::NotEmpty);
    }
    destination.set_len(len).map_err(write_error(0))?;
    let mut written = MemoryWritten {
        len,
        chunks: Vec::new(),
        data_pages: 0,
    };
    walk(source, len, |chunk| {
        written.chunks.push(chunk.digest());
        for (offset, run) in data_runs(chunk.bytes) {
            let offset = chunk.offset + offset;
            destination
                .write_all_at(run, offset)
                .map_err(write_error(offset))?;
            written.data_pages += pages_in(run);
        }
        Ok(())
    })?;
    Ok(written)
}

/// Checks that `file` has exactly `len` bytes with these hashes. The file's offset
/// is moved.
///
/// # Errors
/// When the length or the number of hashes is wrong, the file cannot be read, or a
/// chunk is damaged; the first one is named.
pub fn verify(file: &File, len: u64, chunks: &[Digest]) -> Result<(), MemoryError> {
    check_len(file, len)?;
    let expected = chunk_count(len);
    if chunks.len() != expected {
        return Err(MemoryError::Hashes {
            found: chunks.len(),
            expected,
        });
    }
    let mut hashes = chunks.iter().enumerate();
    walk(file, len, |chunk| match hashes.next() {
        Some((_, hash)) if *hash == chunk.digest() => Ok(()),
        Some((index, _)) => Err(MemoryError::Damaged {
            chunk: index,
            offset: chunk.offset,
        }),
        None => Err(MemoryError::Hashes {
            found: chunks.len(),
            expected,
        }),
    })
}

/// One chunk of a memory; a hole is a slice of [`ZEROES`].
struct Chunk<'a> {
    offset: u64,
    bytes: &'a [u8],
    hole: bool,
}

impl Chunk<'_> {
    fn digest(&self) -> Digest {
        if self.hole && self.bytes.len() == CHUNK {
            *ZERO_HASH
        } else {
            Digest::of(self.bytes)
        }
    }
}

/// Visits each chunk of `file` in order.
fn walk(
    file: &File,
    len: u64,
    mut visit: impl FnMut(&Chunk<'_>) -> Result<(), MemoryError>,
) -> Result<(), MemoryError> {
    let mut buffer = vec![0; CHUNK];
    let mut next_data = 0;
    let mut offset = 0;
    while offset < len {
        let here = usize::try_from((len - offset).min(CHUNK_LEN)).unwrap_or(CHUNK);
        let end = offset.saturating_add(CHUNK_LEN);
        if next_data < offset {
            next_data = seek_data(file, offset)?;
        }
        let hole = next_data >= end;
        let bytes = if hole {
            &ZEROES[..here]
        } else {
            file.read_exact_at(&mut buffer[..here], offset)
                .map_err(|source| MemoryError::Read { offset, source })?;
            &buffer[..here]
        };
        visit(&Chunk {
            offset,
            bytes,
            hole,
        })?;
        offset = end;
    }
    Ok(())
}

/// Where the next data at or after `offset` begins; `u64::MAX` when there is none.
fn seek_data(file: &File, offset: u64) -> Result<u64, MemoryError> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(data),
        Err(Errno::NXIO) => Ok(u64::MAX),
        // A file system that knows no holes: everything is data.
        Err(Errno::INVAL) => Ok(offset),
        Err(errno) => Err(MemoryError::Read {
            offset,
            source: errno.into(),
        }),
    }
}

/// The longest runs of pages that are not all zero, with their offsets.
fn data_runs(chunk: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let is_zero = |page: &[u8]| page == &ZEROES[..page.len()];
    let mut at = 0;
    std::iter::from_fn(move || {
        let pages = |at: usize| chunk[at..].chunks(PAGE_SIZE);
        let skipped: usize = pages(at)
            .take_while(|page| is_zero(page))
            .map(<[u8]>::len)
            .sum();
        let start = at + skipped;
        let run: usize = pages(start)
            .take_while(|page| !is_zero(page))
            .map(<[u8]>::len)
            .sum();
        at = start + run;
        let offset = u64::try_from(start).ok()?;
        (run > 0).then(|| (offset, &chunk[start..at]))
    })
}

fn pages_in(run: &[u8]) -> u64 {
    u64::try_from(run.len().div_ceil(PAGE_SIZE)).unwrap_or(u64::MAX)
}

fn check_len(file: &File, expected: u64) -> Result<(), MemoryError> {
    let page = u64::try_from(PAGE_SIZE).unwrap_or(u64::MAX);
    if expected == 0 || expected > u64::from(MAX_MEMORY_MIB) * MIB || !expected.is_multiple_of(page)
    {
        return Err(MemoryError::ImpossibleLength(expected));
    }
    let metadata = file
        .metadata()
        .map_err(|source| MemoryError::Read { offset: 0, source })?;
    let found = metadata.len();
    if found == expected {
        Ok(())
    } else {
        Err(MemoryError::Length { found, expected })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    const LEN: u64 = 5 * MIB;

    fn memfd(len: u64, data: &[(u64, &[u8])]) -> File {
        let file = File::from(
            rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
        );
        file.set_len(len).unwrap();
        for (offset, bytes) in data {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    fn content(file: &File, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn the_copy_is_equal_sparse_and_verifies() {
        let source = memfd(LEN, &[(0, &[1]), (8192, &[0; 9000]), (LEN - 1, &[7])]);
        let copy = tempfile::tempfile().unwrap();
        let written = write(&source, &copy, LEN).unwrap();
        assert_eq!((written.len, written.data_pages), (LEN, 2));
        assert_eq!(written.chunks.len(), 3);
        assert_eq!(written.chunks[1], *ZERO_HASH);
        assert!(content(&copy, LEN) == content(&source, LEN));
        assert!(copy.metadata().unwrap().blocks() * 512 < MIB);
        verify(&copy, LEN, &written.chunks).unwrap();
    }

    #[test]
    fn hashes_are_of_the_content_and_not_of_the_holes() {
        let source = memfd(LEN, &[(5000, b"data")]);
        let sparse = tempfile::tempfile().unwrap();
        let written = write(&source, &sparse, LEN).unwrap();
        let dense = memfd(LEN, &[(0, &content(&source, LEN))]);
        verify(&dense, LEN, &written.chunks).unwrap();
        let bytes = content(&source, LEN);
        let by_hand: Vec<_> = bytes.chunks(CHUNK).map(Digest::of).collect();
        assert_eq!(written.chunks, by_hand);
    }

    #[test]
    fn the_first_damaged_chunk_is_named() {
        let source = memfd(LEN, &[(0, &[1])]);
        let copy = tempfile::tempfile().unwrap();
        let written = write(&source, &copy, LEN).unwrap();
        for (at, index) in [(LEN - 1, 2), (3 * MIB, 1), (2 * MIB, 1), (1, 0)] {
            copy.write_all_at(&[9], at).unwrap();
            let error = verify(&copy, LEN, &written.chunks).unwrap_err();
            let begins = u64::try_from(index).unwrap() * CHUNK_LEN;
            assert!(
                matches!(error, MemoryError::Damaged { chunk, offset }
                    if chunk == index && offset == begins),
                "{error}"
            );
        }
    }

    #[test]
    fn a_memory_of_another_length_is_refused() {
        let source = memfd(LEN, &[]);
        let copy = tempfile::tempfile().unwrap();
        let written = write(&source, &copy, LEN).unwrap();
        copy.set_len(LEN - 4096).unwrap();
        let error = verify(&copy, LEN, &written.chunks).unwrap_err();
        assert!(matches!(error, MemoryError::Length { .. }), "{error}");
        let error = write(&source, &copy, 2 * LEN).unwrap_err();
        assert!(matches!(error, MemoryError::Length { .. }), "{error}");
        for len in [0, 4095, u64::MAX] {
            let error = write(&source, &copy, len).unwrap_err();
            assert!(matches!(error, MemoryError::ImpossibleLength(_)), "{error}");
        }
        let error = verify(&source, LEN, &written.chunks[..2]).unwrap_err();
        assert!(
            matches!(
                error,
                MemoryError::Hashes {
                    found: 2,
                    expected: 3
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_file_with_content_is_not_written_over() {
        let source = memfd(LEN, &[]);
        let old = memfd(LEN, &[]);
        assert!(matches!(
            write(&source, &old, LEN),
            Err(MemoryError::NotEmpty)
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn any_scattering_of_data_is_copied_exactly(
            places in prop::collection::vec((0..LEN - 4, any::<[u8; 4]>()), 0..12)
        ) {
            let data: Vec<_> = places.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
            let source = memfd(LEN, &data);
            let copy = tempfile::tempfile().unwrap();
            let written = write(&source, &copy, LEN).unwrap();
            prop_assert!(content(&copy, LEN) == content(&source, LEN));
            prop_assert!(verify(&copy, LEN, &written.chunks).is_ok());
        }
    }
}
