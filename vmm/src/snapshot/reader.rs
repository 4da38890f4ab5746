//! Reading a state file, byte for byte suspicious.

use std::os::fd::AsFd;

use serde::de::DeserializeOwned;

use super::Digest;
use super::error::{HeaderFault, ReadError, SectionFault};
use super::format::{
    Architecture, FORMAT_VERSION, HASH_OFFSET, HEAD_LEN, HEADER_LEN, Head, MAGIC, MAX_STATE_LEN,
    SectionKind,
};

/// A state file whose frame is valid. Sections are taken out one by one; each must
/// be taken exactly once before [`StateReader::finish`].
#[derive(Debug)]
pub struct StateReader {
    bytes: Vec<u8>,
    sections: Vec<Entry>,
}

/// A section as its head has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionInfo {
    /// What it describes.
    pub kind: SectionKind,
    /// Which of its kind, from 0.
    pub index: u16,
    /// Version of its body.
    pub version: u16,
    /// Length of its body, in bytes.
    pub len: u32,
    /// Hash of head and body.
    pub hash: Digest,
}

#[derive(Debug)]
struct Entry {
    head: Head,
    hash: Digest,
    start: usize,
    used: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hashes {
    Check,
    Skip,
}

impl StateReader {
    /// Reads the file from its beginning (its offset does not matter) and checks
    /// order, lengths, the end and every hash.
    ///
    /// # Errors
    /// When the file cannot be read, is too long, or is not valid; nothing longer
    /// than [`MAX_STATE_LEN`] is ever allocated.
    pub fn open(file: impl AsFd) -> Result<Self, ReadError> {
        Self::parse(read_capped(file)?, Hashes::Check)
    }

    /// As [`StateReader::open`], but trusts the hashes: for a file that was checked
    /// when it was imported and that nobody could change since.
    ///
    /// # Errors
    /// As [`StateReader::open`], except that a changed body may go unnoticed.
    pub fn open_without_hashes(file: impl AsFd) -> Result<Self, ReadError> {
        Self::parse(read_capped(file)?, Hashes::Skip)
    }

    /// As [`StateReader::open`], of bytes that are in memory already.
    ///
    /// # Errors
    /// As [`StateReader::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ReadError> {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if len > MAX_STATE_LEN {
            return Err(ReadError::FileTooLong { len });
        }
        Self::parse(bytes, Hashes::Check)
    }

    /// Takes the next section of a kind: for `Processor`, call it once for each.
    ///
    /// # Errors
    /// When there is none (left), its version is another, or its body is not
    /// exactly one `T`.
    pub fn section<T: DeserializeOwned>(
        &mut self,
        kind: SectionKind,
        version: u16,
    ) -> Result<T, ReadError> {
        let entry = self
            .sections
            .iter_mut()
            .find(|entry| entry.head.kind == kind && !entry.used)
            .ok_or(ReadError::of(kind, 0, SectionFault::Missing))?;
        let fault = |fault| ReadError::of(kind, entry.head.index, fault);
        if entry.head.version != version {
            let found = entry.head.version;
            return Err(fault(SectionFault::Version {
                found,
                expected: version,
            }));
        }
        let body = body_of(&self.bytes, entry).ok_or_else(|| fault(SectionFault::Truncated))?;
        let (value, rest) = postcard::take_from_bytes(body)
            .map_err(|source| fault(SectionFault::Decode(source)))?;
        if !rest.is_empty() {
            return Err(fault(SectionFault::Trailing(rest.len())));
        }
        entry.used = true;
        Ok(value)
    }

    /// How many sections of a kind the file has.
    #[must_use]
    pub fn count(&self, kind: SectionKind) -> usize {
        self.heads().filter(|head| head.kind == kind).count()
    }

    /// Every section but the end, in order: what `snapback snapshot inspect` prints.
    pub fn list(&self) -> impl Iterator<Item = SectionInfo> + '_ {
        self.sections.iter().map(|entry| SectionInfo {
            kind: entry.head.kind,
            index: entry.head.index,
            version: entry.head.version,
            len: entry.head.len,
            hash: entry.hash,
        })
    }

    /// Ends reading.
    ///
    /// # Errors
    /// When a section was not taken: what nobody applies cannot be right.
    pub fn finish(self) -> Result<(), ReadError> {
        match self.sections.iter().find(|entry| !entry.used) {
            None => Ok(()),
            Some(Entry { head, .. }) => {
                Err(ReadError::of(head.kind, head.index, SectionFault::Unused))
            }
        }
    }

    fn heads(&self) -> impl Iterator<Item = Head> + '_ {
        self.sections.iter().map(|entry| entry.head)
    }

    fn parse(bytes: Vec<u8>, hashes: Hashes) -> Result<Self, ReadError> {
        check_header(&bytes).map_err(ReadError::Header)?;
        let mut heads = blake3::Hasher::new();
        heads.update(&bytes[..HEADER_LEN]);
        let mut sections: Vec<Entry> = Vec::new();
        let mut at = HEADER_LEN;
        loop {
            let last = sections.last().map(|entry| entry.head);
            let head = parse_head(&bytes[at..], last)?;
            let fault = |fault| ReadError::of(head.kind, head.index, fault);
            // No overflow: a head was there, and a length has 32 bits.
            let raw = &bytes[at..at + HEAD_LEN];
            let entry = Entry {
                head,
                hash: raw[HASH_OFFSET..]
                    .try_into()
                    .map(Digest::from_bytes)
                    .map_err(|_| fault(SectionFault::Truncated))?,
                start: at + HEAD_LEN,
                used: false,
            };
            let body = body_of(&bytes, &entry).ok_or(fault(SectionFault::Truncated))?;
            if hashes == Hashes::Check
                && Digest::of_parts(&[&raw[..HASH_OFFSET], body]) != entry.hash
            {
                return Err(fault(SectionFault::Hash));
            }
            at = entry.start + body.len();
            if head.kind == SectionKind::End {
                if head.version != 1 {
                    let found = head.version;
                    return Err(fault(SectionFault::Version { found, expected: 1 }));
                }
                if hashes == Hashes::Check && heads.finalize().as_bytes() != body {
                    return Err(fault(SectionFault::Hash));
                }
                if at != bytes.len() {
                    return Err(fault(SectionFault::Trailing(bytes.len() - at)));
                }
                return Ok(Self { bytes, sections });
            }
            if hashes == Hashes::Check {
                heads.update(raw);
            }
            sections.push(entry);
        }
    }
}

fn body_of<'a>(bytes: &'a [u8], entry: &Entry) -> Option<&'a [u8]> {
    let len = usize::try_from(entry.head.len).ok()?;
    bytes.get(entry.start..entry.start.checked_add(len)?)
}

fn check_header(bytes: &[u8]) -> Result<(), HeaderFault> {
    let Some((magic, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(HeaderFault::Truncated);
    };
    if *magic != MAGIC {
        return Err(HeaderFault::Magic);
    }
    let Some((architecture, rest)) = rest.split_first_chunk::<4>() else {
        return Err(HeaderFault::Truncated);
    };
    let architecture = u32::from_le_bytes(*architecture);
    if Architecture::from_number(architecture).is_none() {
        return Err(HeaderFault::Architecture(architecture));
    }
    let Some(version) = rest.first_chunk::<2>() else {
        return Err(HeaderFault::Truncated);
    };
    let version = u16::from_le_bytes(*version);
    if version != FORMAT_VERSION {
        return Err(HeaderFault::Version(version));
    }
    Ok(())
}

/// The head at the beginning of `bytes`, after the section `last`.
fn parse_head(bytes: &[u8], last: Option<Head>) -> Result<Head, ReadError> {
    let Some(number) = bytes.first_chunk::<4>() else {
        // Whatever else is missing, the end is.
        return Err(ReadError::of(SectionKind::End, 0, SectionFault::Missing));
    };
    let number = u32::from_le_bytes(*number);
    let Some(kind) = SectionKind::from_number(number) else {
        let fault = SectionFault::UnknownKind(number);
        return Err(ReadError::Section {
            section: "unknown",
            index: 0,
            fault,
        });
    };
    let Some(raw) = bytes.first_chunk::<HEAD_LEN>() else {
        return Err(ReadError::of(kind, 0, SectionFault::Truncated));
    };
    let head = Head {
        kind,
        version: u16::from_le_bytes([raw[4], raw[5]]),
        index: u16::from_le_bytes([raw[6], raw[7]]),
        len: u32::from_le_bytes([raw[8], raw[9], raw[10], raw[11]]),
    };
    let in_order = match last {
        Some(last) if last.kind == kind => last.index.checked_add(1) == Some(head.index),
        Some(last) => last.kind < kind && head.index == 0,
        None => head.index == 0,
    };
    if !in_order || head.index >= kind.max_count() {
        return Err(ReadError::of(kind, 0, SectionFault::OutOfOrder));
    }
    let cap = kind.max_len();
    if head.len > cap {
        let fault = SectionFault::TooLong { len: head.len, cap };
        return Err(ReadError::of(kind, head.index, fault));
    }
    Ok(head)
}

/// The whole of a file that is at most [`MAX_STATE_LEN`] long.
fn read_capped(file: impl AsFd) -> Result<Vec<u8>, ReadError> {
    let io = |errno: rustix::io::Errno| ReadError::Io(errno.into());
    let stat = rustix::fs::fstat(&file).map_err(io)?;
    let len = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    let capacity = usize::try_from(len).ok().filter(|_| len <= MAX_STATE_LEN);
    let Some(capacity) = capacity else {
        return Err(ReadError::FileTooLong { len });
    };
    let mut bytes = vec![0; capacity];
    let mut filled = 0;
    while filled < capacity {
        let offset = u64::try_from(filled).unwrap_or(u64::MAX);
        match rustix::io::pread(&file, &mut bytes[filled..], offset) {
            // Shorter than it was a moment ago; the parser says where it ends.
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(io(errno)),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
