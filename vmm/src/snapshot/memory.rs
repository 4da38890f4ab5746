//! The memory file: a guest's memory with holes for its zero pages, and a hash for
//! each 2 MiB of its logical content.
//!
//! ```text
//!  memfd of the paused guest ── write ──────► memory (sparse) + hashes for snapshot.json
//!   … with a base            ── write_diff ─► only what differs, and the map of it
//!  memory (imported)         ── verify ─────► the first damaged chunk, or nothing
//! ```
//!
//! All walk the data of the source (`SEEK_DATA`) and never read its holes. The hashes
//! of a diff are of the whole content, base included: they prove the composition.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::LazyLock;

use super::Digest;
use super::layers::{LayerError, Layers};
use super::page_map::PageMap;
use super::sums::PageSums;
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

/// What [`write_diff`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffWritten {
    /// Of the memory file; its data pages are those that differ and are not zero.
    pub memory: MemoryWritten,
    /// The pages that differ.
    pub map: PageMap,
}

/// A memory file could not be written or is not what its hashes say.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The length is zero, over the largest memory or not of whole pages.
    #[error("a memory of {0} bytes is not possible")]
    ImpossibleLength(u64),
    /// Two memories are of different lengths.
    #[error("the other memory has {found} bytes instead of {expected}")]
    Length {
        /// Of the other, in bytes.
        found: u64,
        /// Of the one, in bytes.
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
    /// The layers cannot be put together.
    #[error(transparent)]
    Layer(#[from] LayerError),
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
    let source = guest(source, len)?;
    let mut writer = Writer::new(destination, len)?;
    walk(&source, |chunk| {
        writer.written.chunks.push(chunk.digest());
        writer.write(chunk.offset, chunk.bytes)
    })?;
    Ok(writer.written)
}

/// As [`write`], but only the pages that differ from those of `base`.
///
/// # Errors
/// As [`write`], and when `base` is of another length or cannot be read.
pub fn write_diff(
    source: &File,
    base: &Layers,
    destination: &File,
    len: u64,
) -> Result<DiffWritten, MemoryError> {
    let source = guest(source, len)?;
    let mut writer = Writer::new(destination, len)?;
    let mut map = PageMap::default();
    compare(&source, base, |chunk, differs| {
        writer.written.chunks.push(chunk.digest());
        for (at, page) in chunk.bytes.chunks(PAGE_SIZE).enumerate() {
            if differs(at) {
                let offset = chunk.offset + u64::try_from(at * PAGE_SIZE).unwrap_or(0);
                map.push(page_number(offset));
                writer.write(offset, page)?;
            }
        }
        Ok(())
    })?;
    Ok(DiffWritten {
        memory: writer.written,
        map,
    })
}

/// The pages in which two memories differ.
///
/// # Errors
/// When their lengths differ or one cannot be read.
pub fn differences(one: &Layers, other: &Layers) -> Result<PageMap, MemoryError> {
    let mut map = PageMap::default();
    compare(one, other, |chunk, differs| {
        for at in 0..chunk.bytes.len() / PAGE_SIZE {
            if differs(at) {
                let offset = chunk.offset + u64::try_from(at * PAGE_SIZE).unwrap_or(0);
                map.push(page_number(offset));
            }
        }
        Ok(())
    })?;
    Ok(map)
}

/// Visits each chunk of `one`, with a look at which of its pages differ from `other`'s.
fn compare(
    one: &Layers,
    other: &Layers,
    mut visit: impl FnMut(&Chunk<'_>, &dyn Fn(usize) -> bool) -> Result<(), MemoryError>,
) -> Result<(), MemoryError> {
    if one.len() != other.len() {
        return Err(MemoryError::Length {
            found: other.len(),
            expected: one.len(),
        });
    }
    let mut theirs = vec![0; CHUNK];
    walk(one, |chunk| {
        let theirs = &mut theirs[..chunk.bytes.len()];
        let offset = chunk.offset;
        other
            .read_at(offset, theirs)
            .map_err(|source| MemoryError::Read { offset, source })?;
        let theirs = &*theirs;
        visit(chunk, &|at| {
            let page = at * PAGE_SIZE..(at + 1) * PAGE_SIZE;
            chunk.bytes[page.clone()] != theirs[page]
        })
    })
}

/// Checks that `memory` has these hashes; what its pages are then, for later reads. Its
/// files' offsets are moved.
///
/// # Errors
/// When the number of hashes is wrong, a file cannot be read, or a chunk is damaged;
/// the first one is named.
pub fn verify(memory: &Layers, chunks: &[Digest]) -> Result<PageSums, MemoryError> {
    possible(memory.len())?;
    let expected = chunk_count(memory.len());
    if chunks.len() != expected {
        return Err(MemoryError::Hashes {
            found: chunks.len(),
            expected,
        });
    }
    let mut hashes = chunks.iter().enumerate();
    let mut sums = PageSums::zeroes(memory.len());
    walk(memory, |chunk| match hashes.next() {
        Some((_, hash)) if *hash == chunk.digest() => {
            if !chunk.hole {
                sums.note(chunk.offset, chunk.bytes);
            }
            Ok(())
        }
        Some((index, _)) => Err(MemoryError::Damaged {
            chunk: index,
            offset: chunk.offset,
        }),
        None => Err(MemoryError::Hashes {
            found: chunks.len(),
            expected,
        }),
    })?;
    Ok(sums)
}

/// A stopped guest's memory.
fn guest(memfd: &File, len: u64) -> Result<Layers, MemoryError> {
    possible(len)?;
    let file = memfd
        .try_clone()
        .map_err(|source| MemoryError::Read { offset: 0, source })?;
    Ok(Layers::whole(file, len)?)
}

/// A memory file that is being written.
struct Writer<'a> {
    file: &'a File,
    written: MemoryWritten,
}

impl<'a> Writer<'a> {
    fn new(file: &'a File, len: u64) -> Result<Self, MemoryError> {
        let write_error = |source| MemoryError::Write { offset: 0, source };
        if file.metadata().map_err(write_error)?.len() != 0 {
            return Err(MemoryError::NotEmpty);
        }
        file.set_len(len).map_err(write_error)?;
        let written = MemoryWritten {
            len,
            chunks: Vec::new(),
            data_pages: 0,
        };
        Ok(Self { file, written })
    }

    /// Writes whole pages that belong to `offset`, those that are not zero.
    fn write(&mut self, offset: u64, pages: &[u8]) -> Result<(), MemoryError> {
        for (at, run) in data_runs(pages) {
            let offset = offset + at;
            self.file
                .write_all_at(run, offset)
                .map_err(|source| MemoryError::Write { offset, source })?;
            self.written.data_pages += pages_in(run);
        }
        Ok(())
    }
}

fn page_number(offset: u64) -> u32 {
    let page = u64::try_from(PAGE_SIZE).unwrap_or(u64::MAX);
    // The largest memory has 4 Mi pages.
    u32::try_from(offset / page).unwrap_or(u32::MAX)
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

/// Visits each chunk of `memory` in order.
fn walk(
    memory: &Layers,
    mut visit: impl FnMut(&Chunk<'_>) -> Result<(), MemoryError>,
) -> Result<(), MemoryError> {
    let len = memory.len();
    let mut buffer = vec![0; CHUNK];
    let mut next_data = 0;
    let mut offset = 0;
    while offset < len {
        let read_error = |source| MemoryError::Read { offset, source };
        let here = usize::try_from((len - offset).min(CHUNK_LEN)).unwrap_or(CHUNK);
        let end = offset.saturating_add(CHUNK_LEN);
        if next_data < offset {
            next_data = memory.data_after(offset).map_err(read_error)?;
        }
        let hole = next_data >= end;
        let bytes = if hole {
            &ZEROES[..here]
        } else {
            memory
                .read_at(offset, &mut buffer[..here])
                .map_err(read_error)?;
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

fn possible(len: u64) -> Result<(), MemoryError> {
    let page = u64::try_from(PAGE_SIZE).unwrap_or(u64::MAX);
    if len == 0 || len > u64::from(MAX_MEMORY_MIB) * MIB || !len.is_multiple_of(page) {
        return Err(MemoryError::ImpossibleLength(len));
    }
    Ok(())
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

    fn verified(file: &File, chunks: &[Digest]) -> Result<(), MemoryError> {
        let layers = Layers::whole(file.try_clone().unwrap(), LEN)?;
        verify(&layers, chunks).map(drop)
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
        verified(&copy, &written.chunks).unwrap();
    }

    #[test]
    fn hashes_are_of_the_content_and_not_of_the_holes() {
        let source = memfd(LEN, &[(5000, b"data")]);
        let sparse = tempfile::tempfile().unwrap();
        let written = write(&source, &sparse, LEN).unwrap();
        let dense = memfd(LEN, &[(0, &content(&source, LEN))]);
        verified(&dense, &written.chunks).unwrap();
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
            let error = verified(&copy, &written.chunks).unwrap_err();
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
        let error = verified(&copy, &written.chunks).unwrap_err();
        assert!(
            matches!(error, MemoryError::Layer(LayerError::Length { .. })),
            "{error}"
        );
        let error = write(&source, &copy, 2 * LEN).unwrap_err();
        assert!(
            matches!(error, MemoryError::Layer(LayerError::Length { .. })),
            "{error}"
        );
        for len in [0, 4095, u64::MAX] {
            let error = write(&source, &copy, len).unwrap_err();
            assert!(matches!(error, MemoryError::ImpossibleLength(_)), "{error}");
        }
        let error = verified(&source, &written.chunks[..2]).unwrap_err();
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

    #[test]
    fn a_diff_has_what_differs_and_with_its_base_is_the_whole() {
        let old = memfd(LEN, &[(0, &[1]), (8192, &[2; 9000]), (3 * MIB, &[3; 4096])]);
        // Page 0 changes, page 3 becomes zero, and one where nothing was.
        let new = memfd(
            LEN,
            &[
                (0, &[9]),
                (8192, &[2; 4096]),
                (16384, &[2; 808]),
                (3 * MIB, &[3; 4096]),
                (LEN - 1, &[7]),
            ],
        );
        let base = Layers::whole(old, LEN).unwrap();
        let file = tempfile::tempfile().unwrap();
        let diff = write_diff(&new, &base, &file, LEN).unwrap();
        assert_eq!(diff.map.runs(), [0..1, 3..4, 1279..1280]);
        assert_eq!(diff.memory.data_pages, 2, "the zero page is a hole");
        let plain = write(&new, &tempfile::tempfile().unwrap(), LEN).unwrap();
        assert_eq!(diff.memory.chunks, plain.chunks, "hashes are of the whole");
        let composed = base.with(diff.map.clone(), file).unwrap();
        verify(&composed, &plain.chunks).unwrap();
        let new = Layers::whole(new, LEN).unwrap();
        assert_eq!(differences(&new, &composed).unwrap(), PageMap::default());
        assert_eq!(differences(&new, &base).unwrap(), diff.map);
        // Another base gives another content.
        let other = Layers::whole(memfd(LEN, &[(3 * MIB, &[4])]), LEN).unwrap();
        let wrong = other.with(diff.map, tempfile_of(LEN)).unwrap();
        let error = verify(&wrong, &plain.chunks).unwrap_err();
        assert!(matches!(error, MemoryError::Damaged { .. }), "{error}");
    }

    fn tempfile_of(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
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
            prop_assert!(verified(&copy, &written.chunks).is_ok());
        }

        #[test]
        fn any_two_memories_compose(
            old in prop::collection::vec((0..64_u64, 0_u8..3), 0..40),
            new in prop::collection::vec((0..64_u64, 0_u8..3), 0..40),
        ) {
            let filled = |places: &[(u64, u8)]| {
                let file = memfd(LEN, &[]);
                for (page, byte) in places {
                    file.write_all_at(&[*byte; 4096], page * 4096).unwrap();
                }
                file
            };
            let (old, new) = (filled(&old), filled(&new));
            let base = Layers::whole(old, LEN).unwrap();
            let file = tempfile::tempfile().unwrap();
            let diff = write_diff(&new, &base, &file, LEN).unwrap();
            let composed = base.with(diff.map, file).unwrap();
            let mut bytes = vec![0; usize::try_from(LEN).unwrap()];
            composed.read_at(0, &mut bytes).unwrap();
            prop_assert!(bytes == content(&new, LEN));
            prop_assert!(verify(&composed, &diff.memory.chunks).is_ok());
        }
    }
}
