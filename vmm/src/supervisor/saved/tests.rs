//! Hostile states: what is inside a section with a right hash may be anything. It is
//! read or refused with the name of a section, never with a panic, and never takes more
//! memory than the cap. The states are goldens of real machines.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use proptest::prelude::*;
use serde::ser::SerializeTuple as _;
use serde::{Serialize, Serializer};

use super::*;
use crate::snapshot::format::{HEAD_LEN, HEADER_LEN, MAX_STATE_LEN};
use crate::snapshot::manifest::{Manifest, ManifestError};
use crate::sys::allocation::measured;

fn golden(name: &str, file: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
    fs::read(folder.join(name).join(file)).unwrap()
}

/// A section's body as it is.
struct Raw(Vec<u8>);

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        self.0
            .iter()
            .try_for_each(|byte| tuple.serialize_element(byte))?;
        tuple.end()
    }
}

/// Kind, version and body of each section.
fn sections(state: &[u8]) -> Vec<(SectionKind, u16, Vec<u8>)> {
    let reader = StateReader::from_bytes(state.to_vec()).unwrap();
    let mut at = HEADER_LEN;
    let body = |section: crate::snapshot::SectionInfo| {
        let start = at + HEAD_LEN;
        at = start + usize::try_from(section.len).unwrap();
        (section.kind, section.version, state[start..at].to_vec())
    };
    reader.list().map(body).collect()
}

/// A state file of these sections, every hash of which is right.
fn file(sections: &[(SectionKind, u16, Vec<u8>)]) -> Result<File, WriteError> {
    let mut writer = StateWriter::new();
    for (kind, version, body) in sections {
        writer.section(*kind, *version, &Raw(body.clone()))?;
    }
    let file = tempfile::tempfile().unwrap();
    writer.finish(&file)?;
    Ok(file)
}

/// One change to some bytes.
#[derive(Debug, Clone)]
enum Edit {
    Flip(prop::sample::Index, u8),
    Set(prop::sample::Index, u8),
    /// A length that says "four thousand million".
    Huge(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Cut(prop::sample::Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), 0_u8..8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        at().prop_map(Edit::Huge),
        (at(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (at(), 1_usize..9).prop_map(|(at, count)| Edit::Remove(at, count)),
        at().prop_map(Edit::Cut),
    ]
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let len = bytes.len();
        match self {
            Self::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Self::Set(at, byte) => bytes[at.index(len)] = *byte,
            Self::Huge(at) => {
                let at = at.index(len);
                bytes.splice(at..=at, [0xff, 0xff, 0xff, 0xff, 0x0f]);
            }
            Self::Insert(at, more) => {
                let at = at.index(len);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Remove(at, count) => {
                let at = at.index(len);
                bytes.drain(at..(at + count).min(len));
            }
            Self::Cut(at) => bytes.truncate(at.index(len)),
        }
    }
}

/// Loads a state; checks that it took no more memory than it may.
fn load(file: &File) -> Result<Saved, LoadError> {
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let (loaded, most) = measured(|| Saved::load(file));
    // The file, what is decoded of it (a byte may be a field of eight), and the first
    // capacity that serde gives to a sequence whatever its length says: 1 MiB.
    let cap = usize::try_from(MAX_STATE_LEN).unwrap() + 9 * len;
    assert!(most <= cap, "{most} bytes for a state of {len}");
    loaded
}

#[test]
fn goldens_are_read_whole() {
    for name in ["v1-one-vcpu", "v1-two-vcpus", "v1-diff"] {
        let state = golden(name, "state");
        let saved = load(&file(&sections(&state)).unwrap()).unwrap();
        let again = tempfile::tempfile().unwrap();
        saved.store(&again).unwrap();
        let mut bytes = vec![0; state.len()];
        again.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == state, "{name} is written as it was read");
    }
}

#[test]
fn a_sealed_state_is_trusted_for_its_hashes_and_for_nothing_else() {
    let mut state = golden("v1-one-vcpu", "state");
    let sealed = |bytes: &[u8]| File::from(memfd::sealed("state", bytes).unwrap());
    load(&sealed(&state)).unwrap();
    // A changed body goes unnoticed, one that makes no sense does not.
    let body = HEADER_LEN + HEAD_LEN;
    state[body] ^= 1;
    let changed = load(&sealed(&state)).unwrap();
    assert_eq!(changed.machine.memory_mib, 65);
    assert!(load(&file_of(&state)).is_err());
    state[body..body + 4].fill(0xff);
    let error = load(&sealed(&state)).unwrap_err();
    assert_eq!(error.section(), Some("machine"), "{error}");
}

fn file_of(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_content_of_a_section_is_read_or_refused_by_name(
        two in any::<bool>(),
        which in any::<prop::sample::Index>(),
        edits in prop::collection::vec(edit(), 1..6),
    ) {
        let state = golden(if two { "v1-two-vcpus" } else { "v1-one-vcpu" }, "state");
        let mut sections = sections(&state);
        let which = which.index(sections.len());
        let before = sections[which].2.clone();
        edits.iter().for_each(|edit| edit.apply(&mut sections[which].2));
        let kind = sections[which].0;
        // One over its cap is not even written.
        let Ok(file) = file(&sections) else {
            return Ok(());
        };
        match load(&file) {
            Ok(saved) => {
                // What was read can be written, and is that.
                let again = tempfile::tempfile().unwrap();
                saved.store(&again).unwrap();
            }
            Err(error) => {
                prop_assert!(before != sections[which].2);
                let named = error.section();
                // Another number of vCPUs or disks, or another template, is found where
                // it does not fit.
                let fits = match kind {
                    SectionKind::Machine => {
                        [Some("machine"), Some("processor"), Some("devices")].contains(&named)
                    }
                    kind => named == Some(kind.name()),
                };
                prop_assert!(fits, "{kind:?}: {error}");
            }
        }
    }

    #[test]
    fn any_manifest_is_read_or_refused(
        diff in any::<bool>(),
        edits in prop::collection::vec(edit(), 1..6),
    ) {
        let name = if diff { "v1-diff" } else { "v1-two-vcpus" };
        let mut text = golden(name, "snapshot.json");
        edits.iter().for_each(|edit| edit.apply(&mut text));
        let (read, most) = measured(|| Manifest::from_json(&text));
        // Names and hashes are kept, and lists grow by doubling.
        prop_assert!(most <= 16 * text.len() + 64 * 1024, "{most} of {}", text.len());
        match read {
            Ok(manifest) => prop_assert!(manifest.to_json().is_ok()),
            Err(error) => prop_assert!(
                !matches!(error, ManifestError::Io(_)) && error.to_string().contains("snapshot.json")
            ),
        }
    }
}
