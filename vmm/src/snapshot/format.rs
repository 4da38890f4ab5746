//! The numbers of the state file, each pinned by a tripwire.
//!
//! ```text
//!  header   magic (8) · architecture (u32) · format version (u16)
//!  section  kind (u32) · version (u16) · index (u16) · length (u32) · hash (32) · body
//!  …
//!  end      a section whose body is the hash of the header and all section heads
//! ```
//!
//! Numbers are little-endian and nothing is padded. A section's hash covers its
//! head up to the hash, then its body; the end covers the heads. So every bit of a
//! file is under a hash, and each byte is hashed once.
//!
//! There are three version axes: [`FORMAT_VERSION`] for this frame, one version per
//! section for its body, and `snapshot.json` has its own.

/// First bytes of a state file.
pub const MAGIC: [u8; 8] = *b"SNAPBK\r\n";

/// Version of the frame that this module describes.
pub const FORMAT_VERSION: u16 = 1;

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 14;

/// Length of a section's head, in bytes.
pub const HEAD_LEN: usize = 44;

/// Where the hash begins within a section's head, in bytes.
pub const HASH_OFFSET: usize = 12;

/// Largest state file, in bytes.
pub const MAX_STATE_LEN: u64 = 4 * 1024 * 1024;

/// Most virtual processors that a state file describes.
pub const MAX_PROCESSORS: u16 = 16;

/// The processor architecture that a state file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64 = 1,
}

impl Architecture {
    /// The number in the file.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::X86_64 => 1,
        }
    }

    /// The architecture of a number in a file.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::X86_64),
            _ => None,
        }
    }
}

/// What a section describes. They stand in the file in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SectionKind {
    /// Memory size and layout, number of processors.
    Machine,
    /// One virtual processor; the only kind of which there may be several.
    Processor,
    /// The interrupt controllers of the machine.
    Interrupts,
    /// The machine's clock.
    Clock,
    /// Every device, and what is in flight in it.
    Devices,
    /// The end of the file, written and checked by this module itself.
    End,
}

impl SectionKind {
    /// Every kind, in the file's order.
    pub const ALL: [Self; 6] = [
        Self::Machine,
        Self::Processor,
        Self::Interrupts,
        Self::Clock,
        Self::Devices,
        Self::End,
    ];

    /// The number in the file.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Machine => 1,
            Self::Processor => 2,
            Self::Interrupts => 3,
            Self::Clock => 4,
            Self::Devices => 5,
            Self::End => 0x00d5_0e4d,
        }
    }

    /// The kind of a number in a file.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// The name that errors use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Processor => "processor",
            Self::Interrupts => "interrupts",
            Self::Clock => "clock",
            Self::Devices => "devices",
            Self::End => "end",
        }
    }

    /// Longest body, in bytes.
    #[must_use]
    pub const fn max_len(self) -> u32 {
        match self {
            Self::Machine | Self::Clock => 4 * 1024,
            Self::Processor | Self::Interrupts => 64 * 1024,
            Self::Devices => 2 * 1024 * 1024,
            Self::End => 32,
        }
    }

    /// How many sections of this kind a file may have.
    #[must_use]
    pub const fn max_count(self) -> u16 {
        match self {
            Self::Processor => MAX_PROCESSORS,
            _ => 1,
        }
    }
}

/// The head of a section, without its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub kind: SectionKind,
    pub version: u16,
    pub index: u16,
    pub len: u32,
}

impl Head {
    /// The bytes in the file, up to the hash.
    pub fn to_bytes(self) -> [u8; HASH_OFFSET] {
        let mut bytes = [0; HASH_OFFSET];
        bytes[0..4].copy_from_slice(&self.kind.number().to_le_bytes());
        bytes[4..6].copy_from_slice(&self.version.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.index.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }
}

/// The header of a file for `architecture`.
pub(super) fn header(architecture: Architecture) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[0..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&architecture.number().to_le_bytes());
    bytes[12..14].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes
}

// A change to any of these is a new format: raise FORMAT_VERSION, keep reading the
// old one, and say so in docs/snapshot-format.md.
const _: () = {
    assert!(FORMAT_VERSION == 1);
    assert!(HEADER_LEN == MAGIC.len() + 4 + 2);
    assert!(HASH_OFFSET == 4 + 2 + 2 + 4);
    assert!(HEAD_LEN == HASH_OFFSET + super::Digest::LEN);
    assert!(Architecture::X86_64.number() == 1);
    assert!(SectionKind::Machine.number() == 1);
    assert!(SectionKind::Processor.number() == 2);
    assert!(SectionKind::Interrupts.number() == 3);
    assert!(SectionKind::Clock.number() == 4);
    assert!(SectionKind::Devices.number() == 5);
    assert!(SectionKind::End.number() == 0x00d5_0e4d);
    assert!(MAX_STATE_LEN == 0x40_0000);
    assert!(MAX_PROCESSORS == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_largest_sections_fits_the_cap() {
        let sum: u64 = SectionKind::ALL
            .iter()
            .map(|kind| {
                let each = u64::from(kind.max_len()) + 44;
                u64::from(kind.max_count()) * each
            })
            .sum();
        assert!(sum + 14 <= MAX_STATE_LEN, "{sum}");
    }

    #[test]
    fn kinds_have_distinct_numbers_and_names() {
        for (at, kind) in SectionKind::ALL.into_iter().enumerate() {
            assert_eq!(SectionKind::from_number(kind.number()), Some(kind));
            for other in &SectionKind::ALL[at + 1..] {
                assert_ne!(kind.name(), other.name());
                assert!(kind < *other);
            }
        }
        for unknown in [0, 6, u32::MAX] {
            assert_eq!(SectionKind::from_number(unknown), None);
        }
    }

    #[test]
    fn the_header_is_these_bytes() {
        assert_eq!(&header(Architecture::X86_64), b"SNAPBK\r\n\x01\0\0\0\x01\0");
    }

    #[test]
    fn a_head_is_these_bytes() {
        let head = Head {
            kind: SectionKind::Processor,
            version: 3,
            index: 1,
            len: 0x0102,
        };
        assert_eq!(head.to_bytes(), [2, 0, 0, 0, 3, 0, 1, 0, 2, 1, 0, 0]);
    }
}
