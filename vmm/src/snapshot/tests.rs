//! The state file as a whole: what is valid comes back, anything else is refused
//! with the section's name.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::format::{MAX_STATE_LEN, SectionKind as Kind};
use super::*;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PartV1 {
    number: u64,
    bytes: ByteBuf,
}

fn part(number: u64) -> PartV1 {
    PartV1 {
        number,
        bytes: ByteBuf::from(vec![0xa5; 100]),
    }
}

fn valid() -> Vec<u8> {
    let mut writer = StateWriter::new();
    writer.section(Kind::Machine, 1, &part(1)).unwrap();
    writer.section(Kind::Processor, 2, &part(2)).unwrap();
    writer.section(Kind::Processor, 2, &part(3)).unwrap();
    writer.section(Kind::Interrupts, 1, &part(4)).unwrap();
    writer.section(Kind::Clock, 1, &part(5)).unwrap();
    writer.section(Kind::Devices, 1, &part(6)).unwrap();
    let file = tempfile::tempfile().unwrap();
    let written = writer.finish(&file).unwrap();
    let mut bytes = vec![0; usize::try_from(written.len).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), written.len);
    assert_eq!(Digest::of(&bytes), written.hash);
    bytes
}

fn file_of(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn read_all(mut reader: StateReader) -> Result<Vec<PartV1>, ReadError> {
    let mut parts = vec![reader.section(Kind::Machine, 1)?];
    for _ in 0..reader.count(Kind::Processor) {
        parts.push(reader.section(Kind::Processor, 2)?);
    }
    for kind in [Kind::Interrupts, Kind::Clock, Kind::Devices] {
        parts.push(reader.section(kind, 1)?);
    }
    reader.finish()?;
    Ok(parts)
}

/// Where the head of the n-th section begins.
fn head_of(bytes: &[u8], n: usize) -> usize {
    (0..n).fold(format::HEADER_LEN, |at, _| {
        let len = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap());
        at + format::HEAD_LEN + usize::try_from(len).unwrap()
    })
}

fn refused(bytes: Vec<u8>) -> ReadError {
    StateReader::from_bytes(bytes).unwrap_err()
}

#[test]
fn what_was_written_is_read() {
    let expected: Vec<_> = (1..=6).map(part).collect();
    let bytes = valid();
    let file = file_of(&bytes);
    assert_eq!(
        read_all(StateReader::open(&file).unwrap()).unwrap(),
        expected
    );
    let unhashed = StateReader::open_without_hashes(&file).unwrap();
    assert_eq!(read_all(unhashed).unwrap(), expected);
    let listed: Vec<_> = StateReader::from_bytes(bytes).unwrap().list().collect();
    assert_eq!(listed.len(), 6);
    assert_eq!((listed[2].kind, listed[2].index), (Kind::Processor, 1));
}

#[test]
fn every_truncation_names_the_section_it_hits() {
    let bytes = valid();
    for len in 0..bytes.len() {
        let error = refused(bytes[..len].to_vec());
        assert!(error.section().is_some(), "{len}: {error}");
    }
    assert_eq!(refused(bytes[..5].to_vec()).section(), Some("header"));
    for (n, name) in [
        "machine",
        "processor",
        "processor",
        "interrupts",
        "clock",
        "devices",
        "end",
    ]
    .into_iter()
    .enumerate()
    {
        let at = head_of(&bytes, n);
        for len in [at + 10, at + format::HEAD_LEN, at + format::HEAD_LEN + 5] {
            let error = refused(bytes[..len].to_vec());
            assert_eq!(error.section(), Some(name));
            let text = error.to_string();
            assert!(text.contains("ends within it"), "{text}");
        }
        let error = refused(bytes[..at].to_vec());
        assert_eq!(error.to_string(), "section `end`: it is missing");
    }
}

#[test]
fn every_single_flipped_bit_is_refused_with_a_name() {
    let bytes = valid();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            let error = refused(bad);
            assert!(error.section().is_some(), "byte {at}, bit {bit}: {error}");
        }
    }
}

#[test]
fn a_changed_body_is_named() {
    let mut bytes = valid();
    let at = head_of(&bytes, 2) + format::HEAD_LEN + 3;
    bytes[at] ^= 1;
    let error = refused(bytes);
    assert_eq!(
        error.to_string(),
        "section `processor` number 1: hash does not match"
    );
    assert_eq!(error.section(), Some("processor"));
}

#[test]
fn sections_cannot_be_dropped_swapped_or_repeated() {
    let bytes = valid();
    let at = |n| head_of(&bytes, n);
    let dropped = [&bytes[..at(3)], &bytes[at(4)..]].concat();
    assert_eq!(
        refused(dropped).to_string(),
        "section `end`: hash does not match"
    );
    let swapped = [&bytes[..at(3)], &bytes[at(4)..at(5)], &bytes[at(3)..at(4)]].concat();
    assert_eq!(refused(swapped).section(), Some("interrupts"));
    let repeated = [&bytes[..at(4)], &bytes[at(3)..]].concat();
    assert!(
        refused(repeated)
            .to_string()
            .contains("out of order or repeated")
    );
    let processors = [&bytes[..at(1)], &bytes[at(2)..]].concat();
    assert_eq!(refused(processors).section(), Some("processor"));
    let longer = [&bytes[..], b"x"].concat();
    assert!(refused(longer).to_string().contains("followed by 1 bytes"));
}

#[test]
fn an_unknown_kind_is_refused() {
    let mut bytes = valid();
    let at = head_of(&bytes, 0);
    bytes[at] = 99;
    let error = refused(bytes);
    assert_eq!(error.section(), Some("unknown"));
    assert!(error.to_string().contains("its kind 99 is not known"));
}

#[test]
fn other_architectures_and_versions_are_told_apart() {
    let mut bytes = valid();
    bytes[8] = 2;
    assert!(refused(bytes).to_string().contains("architecture 2"));
    let mut bytes = valid();
    bytes[12] = 2;
    assert!(refused(bytes).to_string().contains("format version 2"));
    let mut reader = StateReader::from_bytes(valid()).unwrap();
    let error = reader.section::<PartV1>(Kind::Machine, 2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "section `machine`: it has version 1, and this build reads version 2"
    );
}

#[test]
fn a_body_must_be_exactly_one_struct() {
    let mut reader = StateReader::from_bytes(valid()).unwrap();
    let error = reader.section::<u8>(Kind::Machine, 1).unwrap_err();
    assert!(error.to_string().contains("belong to nothing"), "{error}");
    let error = reader
        .section::<(PartV1, u8)>(Kind::Machine, 1)
        .unwrap_err();
    assert!(error.to_string().contains("cannot be decoded"), "{error}");
}

#[test]
fn a_section_that_nobody_uses_or_that_is_missing_is_an_error() {
    let reader = StateReader::from_bytes(valid()).unwrap();
    assert_eq!(
        reader.finish().unwrap_err().to_string(),
        "section `machine`: nothing uses it"
    );
    let file = tempfile::tempfile().unwrap();
    StateWriter::new().finish(&file).unwrap();
    let mut empty = StateReader::open(&file).unwrap();
    let error = empty.section::<PartV1>(Kind::Clock, 1).unwrap_err();
    assert_eq!(error.to_string(), "section `clock`: it is missing");
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut writer = StateWriter::new();
    writer.section(Kind::Clock, 1, &0_u8).unwrap();
    for kind in [Kind::Clock, Kind::Machine, Kind::End] {
        let error = writer.section(kind, 1, &0_u8).unwrap_err();
        assert_eq!(error.section(), Some(kind.name()));
    }
    let long = ByteBuf::from(vec![0; 3 * 1024 * 1024]);
    let error = writer.section(Kind::Devices, 1, &long).unwrap_err();
    assert!(
        matches!(
            error,
            WriteError::TooLong {
                section: "devices",
                ..
            }
        ),
        "{error}"
    );
    let error = writer.finish(&file_of(b"old")).unwrap_err();
    assert!(matches!(error, WriteError::Io(_)), "{error}");
    let mut writer = StateWriter::new();
    for _ in 0..format::MAX_PROCESSORS {
        writer.section(Kind::Processor, 1, &0_u8).unwrap();
    }
    assert!(writer.section(Kind::Processor, 1, &0_u8).is_err());
}

#[test]
fn a_file_over_the_cap_is_refused_unread() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 40).unwrap();
    let error = StateReader::open(&file).unwrap_err();
    assert!(
        matches!(error, ReadError::FileTooLong { len } if len == 1 << 40),
        "{error}"
    );
    assert!(StateReader::from_bytes(vec![0; usize::try_from(MAX_STATE_LEN).unwrap() + 1]).is_err());
}

#[test]
fn a_length_over_the_cap_is_refused_before_it_is_used() {
    let mut bytes = valid();
    let at = head_of(&bytes, 5) + 8;
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = refused(bytes);
    assert_eq!(
        error.to_string(),
        "section `devices`: it has 4294967295 bytes, more than 2097152"
    );
}

proptest! {
    #[test]
    fn any_damage_is_refused_or_changes_nothing(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = valid();
        let mut bad = bytes.clone();
        for (at, value) in edits {
            let at = at.index(bad.len());
            bad[at] = value;
        }
        bad.truncate(cut.index(bytes.len()) + 1);
        if bad == bytes {
            prop_assert!(StateReader::from_bytes(bad).is_ok());
        } else {
            prop_assert!(refused(bad).section().is_some());
        }
    }

    #[test]
    fn a_damaged_file_read_without_hashes_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bad = valid();
        for (at, value) in edits {
            let at = at.index(bad.len());
            bad[at] = value;
        }
        match StateReader::open_without_hashes(file_of(&bad)).and_then(read_all) {
            Ok(parts) => prop_assert_eq!(parts.len(), 6),
            Err(error) => prop_assert!(error.section().is_some()),
        }
    }

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(refused(noise).section().is_some());
    }
}
