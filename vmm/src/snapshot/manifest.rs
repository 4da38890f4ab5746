//! `snapshot.json`: what a snapshot is.
//!
//! The agent writes it last, after the state and the memory, so that a directory
//! without one is not a snapshot. It is read before anything else of a snapshot and
//! is as little trusted: capped, without unknown fields, checked field by field.

use std::fs::File;
use std::io::{self, Read as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use snapback_proto::cpu::CpuTemplate;
use snapback_proto::ids::FunctionName;

use super::Digest;
use super::format::{MAX_PROCESSORS, MAX_STATE_LEN};
use super::memory::{CHUNK_LEN, MAX_MEMORY_MIB, MIB, chunk_count};
use super::page_map;

/// Name of the file within a snapshot's directory.
pub const FILE_NAME: &str = "snapshot.json";
/// Name of the state file beside it.
pub const STATE_FILE_NAME: &str = "state";
/// Name of the memory file beside it.
pub const MEMORY_FILE_NAME: &str = "memory";

/// Version of `snapshot.json` that this build writes and reads.
pub const MANIFEST_VERSION: u32 = 1;

/// Largest `snapshot.json`, in bytes. The hashes of 16 GiB take about 0.55 MiB.
pub const MAX_MANIFEST_LEN: u64 = 1024 * 1024;

/// Most processor features, and longest name of one, in characters.
const MAX_FEATURES: usize = 256;
const MAX_FEATURE_LEN: usize = 32;

/// A snapshot's description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`] of the writer.
    pub format_version: u32,
    /// The snapshot's own name.
    pub snapshot_id: SnapshotId,
    /// When it was made, in milliseconds since 1970 (UTC).
    pub created_unix_ms: u64,
    /// The function that is parked in it.
    pub function: FunctionName,
    /// The machine's shape.
    pub machine: Machine,
    /// The processor it needs.
    pub cpu: Cpu,
    /// Hash of the guest kernel's image.
    pub kernel: Digest,
    /// Hash of the root file system's image.
    pub root_fs: Digest,
    /// Hash of the function's code image.
    pub code: Digest,
    /// Hash of guest-init.
    pub guest_init: Digest,
    /// The state file.
    pub state: FileDigest,
    /// The memory file.
    pub memory: Memory,
    /// What the memory file is a diff of; without one it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// Whether it was made of another snapshot, by having the guest move the pages that
    /// requests touch next to each other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gathered: bool,
}

/// The snapshot whose memory is below that of a diff.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Its name; it lies beside this one.
    pub snapshot_id: SnapshotId,
    /// Hash of its `snapshot.json`, and so of all that it is.
    pub manifest: Digest,
    /// The file that says which pages the diff's memory defines.
    pub map: FileDigest,
}

/// The machine's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Guest memory, in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u8,
    /// What they can do.
    pub template: CpuTemplate,
}

/// The processor that a snapshot needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// CPUID's vendor string, for example `AuthenticAMD`.
    pub vendor: String,
    /// Features the guest saw, in the names of `/proc/cpuinfo`, by which a host is
    /// judged before anything else is read.
    pub features: Vec<String>,
}

/// A file's length and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// In bytes.
    pub len: u64,
    /// Of the whole file.
    pub hash: Digest,
}

/// The memory file's length and hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Logical length, in bytes; the machine's memory size.
    pub len: u64,
    /// How many bytes each hash covers; [`CHUNK_LEN`].
    pub chunk_len: u64,
    /// One for each chunk; holes count as zeroes, the last may be shorter.
    pub chunks: Vec<Digest>,
}

/// A snapshot's name: 1 to 64 of `a-z 0-9 -`, so that it is a file name, too.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(String);

/// A string is not a snapshot id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a snapshot id is 1 to 64 lower-case letters, digits and '-', and this is not one")]
pub struct InvalidSnapshotId;

/// A `snapshot.json` was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file gave no bytes.
    #[error("snapshot.json cannot be read")]
    Io(#[source] io::Error),
    /// The file is larger than any manifest.
    #[error("snapshot.json is longer than {MAX_MANIFEST_LEN} bytes")]
    TooLong,
    /// It is not JSON of the right shape.
    #[error("snapshot.json cannot be understood")]
    Shape(#[source] serde_json::Error),
    /// It was written by another version.
    #[error("snapshot.json has version {found}; this build reads version {MANIFEST_VERSION}")]
    Version {
        /// In the file.
        found: u32,
    },
    /// A field's value is impossible.
    #[error("snapshot.json: `{field}` {reason}")]
    Field {
        /// The field, with dots.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Manifest {
    /// Reads and checks a manifest; and the hash of its file.
    ///
    /// # Errors
    /// When it cannot be read, is too long, of another version, or not valid.
    pub fn read(file: &File) -> Result<(Self, Digest), ManifestError> {
        let mut text = Vec::new();
        file.take(MAX_MANIFEST_LEN + 1)
            .read_to_end(&mut text)
            .map_err(ManifestError::Io)?;
        Ok((Self::from_json(&text)?, Digest::of(&text)))
    }

    /// Checks a manifest in memory.
    ///
    /// # Errors
    /// When it is too long, of another version, or not valid.
    pub fn from_json(text: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Versioned {
            format_version: u32,
        }

        if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_MANIFEST_LEN {
            return Err(ManifestError::TooLong);
        }
        // First, so that a newer manifest is called newer and not misshapen.
        let Versioned { format_version } =
            serde_json::from_slice(text).map_err(ManifestError::Shape)?;
        if format_version != MANIFEST_VERSION {
            return Err(ManifestError::Version {
                found: format_version,
            });
        }
        let manifest: Self = serde_json::from_slice(text).map_err(ManifestError::Shape)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// The file's text.
    ///
    /// # Errors
    /// When the manifest is one that [`Manifest::from_json`] would refuse.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        self.validate()?;
        let mut text = serde_json::to_vec_pretty(self).map_err(ManifestError::Shape)?;
        text.push(b'\n');
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_MANIFEST_LEN {
            return Err(ManifestError::TooLong);
        }
        Ok(text)
    }

    /// Checks that the fields are possible and agree with one another.
    ///
    /// # Errors
    /// Names the first field that is not.
    pub fn validate(&self) -> Result<(), ManifestError> {
        let field = |ok: bool, field, reason: &str| {
            if ok {
                Ok(())
            } else {
                Err(ManifestError::Field {
                    field,
                    reason: reason.to_owned(),
                })
            }
        };
        if self.format_version != MANIFEST_VERSION {
            return Err(ManifestError::Version {
                found: self.format_version,
            });
        }
        let Machine {
            memory_mib, vcpus, ..
        } = self.machine;
        field(
            (1..=MAX_MEMORY_MIB).contains(&memory_mib),
            "machine.memory_mib",
            "is not 1 to 16384",
        )?;
        field(
            (1..=MAX_PROCESSORS).contains(&u16::from(vcpus)),
            "machine.vcpus",
            "is not 1 to 16",
        )?;
        let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let vendor = &self.cpu.vendor;
        field(
            vendor.len() == 12 && vendor.is_ascii(),
            "cpu.vendor",
            "is not 12 characters",
        )?;
        let features = &self.cpu.features;
        field(
            features.len() <= MAX_FEATURES
                && features
                    .iter()
                    .all(|name| (1..=MAX_FEATURE_LEN).contains(&name.len()) && printable(name)),
            "cpu.features",
            "has too many names or an impossible one",
        )?;
        field(
            (1..=MAX_STATE_LEN).contains(&self.state.len),
            "state.len",
            "is zero or larger than any state file",
        )?;
        let memory = &self.memory;
        field(
            memory.len == u64::from(memory_mib) * MIB,
            "memory.len",
            "is not the machine's memory size",
        )?;
        field(
            memory.chunk_len == CHUNK_LEN,
            "memory.chunk_len",
            "is not 2097152",
        )?;
        field(
            memory.chunks.len() == chunk_count(memory.len),
            "memory.chunks",
            "does not have one hash for each 2 MiB",
        )?;
        let Some(base) = &self.base else {
            return Ok(());
        };
        field(
            base.snapshot_id != self.snapshot_id,
            "base.snapshot_id",
            "is the snapshot itself",
        )?;
        field(
            (1..=page_map::MAX_LEN).contains(&base.map.len),
            "base.map.len",
            "is zero or larger than any map",
        )
    }
}

impl SnapshotId {
    /// Longest id, in characters.
    pub const MAX_LENGTH: usize = 64;

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SnapshotId {
    type Err = InvalidSnapshotId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = InvalidSnapshotId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if !(1..=Self::MAX_LENGTH).contains(&text.len()) || !text.bytes().all(allowed) {
            return Err(InvalidSnapshotId);
        }
        Ok(Self(text))
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format_version: MANIFEST_VERSION,
            snapshot_id: "s-1".parse().unwrap(),
            created_unix_ms: 1_700_000_000_000,
            function: "report".parse().unwrap(),
            machine: Machine {
                memory_mib: 5,
                vcpus: 1,
                template: CpuTemplate::V2,
            },
            cpu: Cpu {
                vendor: "AuthenticAMD".into(),
                features: vec!["sse2".into()],
            },
            kernel: Digest::of(b"kernel"),
            root_fs: Digest::of(b"root"),
            code: Digest::of(b"code"),
            guest_init: Digest::of(b"init"),
            state: FileDigest {
                len: 100,
                hash: Digest::of(b"state"),
            },
            memory: Memory {
                len: 5 << 20,
                chunk_len: CHUNK_LEN,
                chunks: vec![Digest::of(b"chunk"); 3],
            },
            base: Some(Base {
                snapshot_id: "s-0".parse().unwrap(),
                manifest: Digest::of(b"manifest"),
                map: FileDigest {
                    len: 46,
                    hash: Digest::of(b"map"),
                },
            }),
            gathered: true,
        }
    }

    #[test]
    fn a_manifest_survives_its_text_form() {
        let text = manifest().to_json().unwrap();
        assert_eq!(Manifest::from_json(&text).unwrap(), manifest());
        let whole = Manifest {
            base: None,
            gathered: false,
            ..manifest()
        };
        let text = whole.to_json().unwrap();
        let words = String::from_utf8_lossy(&text);
        assert!(!words.contains("base") && !words.contains("gathered"));
        assert_eq!(Manifest::from_json(&text).unwrap(), whole);
    }

    #[test]
    fn a_manifest_of_the_largest_machine_fits_the_cap() {
        let mut largest = manifest();
        largest.machine.memory_mib = MAX_MEMORY_MIB;
        largest.memory.len = u64::from(MAX_MEMORY_MIB) << 20;
        largest.memory.chunks = vec![Digest::of(b""); chunk_count(largest.memory.len)];
        largest.cpu.features = vec!["x".repeat(MAX_FEATURE_LEN); MAX_FEATURES];
        assert!(Manifest::from_json(&largest.to_json().unwrap()).is_ok());
    }

    #[test]
    fn a_newer_manifest_is_called_newer() {
        let text = br#"{"format_version": 2, "something": "else"}"#;
        let error = Manifest::from_json(text).unwrap_err();
        assert!(
            matches!(error, ManifestError::Version { found: 2 }),
            "{error}"
        );
    }

    #[test]
    fn an_unknown_field_is_refused_at_every_level() {
        let text = String::from_utf8(manifest().to_json().unwrap()).unwrap();
        for at in text.match_indices('{').map(|(at, _)| at + 1) {
            let more = format!("{}\"more\": 1, {}", &text[..at], &text[at..]);
            let error = Manifest::from_json(more.as_bytes()).unwrap_err();
            assert!(matches!(error, ManifestError::Shape(_)), "{error}");
        }
    }

    #[test]
    fn impossible_values_are_refused_with_the_fields_name() {
        type Change = fn(&mut Manifest);
        let cases: [(&str, Change); 11] = [
            ("machine.memory_mib", |m| m.machine.memory_mib = 0),
            ("machine.vcpus", |m| m.machine.vcpus = 17),
            ("cpu.vendor", |m| m.cpu.vendor.clear()),
            ("cpu.features", |m| m.cpu.features.push("a b".into())),
            ("state.len", |m| m.state.len = MAX_STATE_LEN + 1),
            ("memory.len", |m| m.memory.len += 1),
            ("memory.chunk_len", |m| m.memory.chunk_len = 4096),
            ("memory.chunks", |m| m.memory.chunks.clear()),
            ("memory.chunks", |m| m.memory.chunks.push(Digest::of(b""))),
            ("base.snapshot_id", |m| {
                m.base.as_mut().unwrap().snapshot_id = m.snapshot_id.clone();
            }),
            ("base.map.len", |m| m.base.as_mut().unwrap().map.len = 0),
        ];
        for (name, change) in cases {
            let mut bad = manifest();
            change(&mut bad);
            match bad.validate() {
                Err(ManifestError::Field { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
            let text = serde_json::to_vec(&bad).unwrap();
            assert!(Manifest::from_json(&text).is_err(), "{name}");
        }
    }

    #[test]
    fn ids_cannot_leave_their_directory() {
        for bad in ["", "..", "a/b", "A", &"a".repeat(65)] {
            assert_eq!(bad.parse::<SnapshotId>(), Err(InvalidSnapshotId), "{bad:?}");
        }
    }

    #[test]
    fn a_file_over_the_cap_is_refused_unread() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MAX_MANIFEST_LEN + 1).unwrap();
        assert!(matches!(Manifest::read(&file), Err(ManifestError::TooLong)));
    }
}
