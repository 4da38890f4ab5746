//! Zips: written by the library where they are good, byte by byte where not.

use std::os::unix::fs::PermissionsExt as _;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;

/// An entry as it is written by hand: stored, not compressed.
struct Entry<'a> {
    name: &'a str,
    content: &'a [u8],
    mode: u32,
    flags: u16,
    method: u16,
}

fn stored<'a>(name: &'a str, content: &'a [u8]) -> Entry<'a> {
    Entry {
        name,
        content,
        mode: 0o100_644,
        flags: 0,
        method: 0,
    }
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn len32(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap().to_le_bytes()
}

fn len16(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap().to_le_bytes()
}

/// APPNOTE.TXT 4.3.7, 4.3.12, 4.3.16.
fn zip(entries: &[Entry<'_>]) -> Vec<u8> {
    let (mut files, mut table) = (Vec::new(), Vec::new());
    for entry in entries {
        let mut common = Vec::new();
        common.extend(20_u16.to_le_bytes());
        common.extend(entry.flags.to_le_bytes());
        common.extend(entry.method.to_le_bytes());
        common.extend([0; 4]);
        common.extend(crc(entry.content).to_le_bytes());
        common.extend(len32(entry.content));
        common.extend(len32(entry.content));
        common.extend(len16(entry.name.as_bytes()));
        common.extend([0; 2]);
        let offset = len32(&files);
        files.extend(b"PK\x03\x04");
        files.extend(&common);
        files.extend(entry.name.as_bytes());
        files.extend(entry.content);
        // Made on Unix.
        table.extend(b"PK\x01\x02\x14\x03");
        table.extend(&common);
        table.extend([0; 6]);
        table.extend((entry.mode << 16).to_le_bytes());
        table.extend(offset);
        table.extend(entry.name.as_bytes());
    }
    let count = u16::try_from(entries.len()).unwrap().to_le_bytes();
    let mut end = b"PK\x05\x06\0\0\0\0".to_vec();
    end.extend(count);
    end.extend(count);
    end.extend(len32(&table));
    end.extend(len32(&files));
    end.extend([0; 2]);
    [files, table, end].concat()
}

fn unpacked(entries: &[Entry<'_>]) -> Unpacked {
    Unpacked::new(&zip(entries))
}

#[test]
fn a_zip_comes_out_as_it_went_in() {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let plain = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    writer.add_directory("pkg/", plain).unwrap();
    writer
        .start_file("pkg/žluťoučký.py", plain.unix_permissions(0o600))
        .unwrap();
    let text = "import this\n".repeat(1000);
    writer.write_all(text.as_bytes()).unwrap();
    writer
        .start_file("bootstrap", plain.unix_permissions(0o755))
        .unwrap();
    writer.write_all(b"#!/bin/sh\n").unwrap();
    writer.add_symlink("link", "pkg", plain).unwrap();
    let bytes = writer.finish().unwrap().into_inner();

    let unpacked = Unpacked::new(&bytes);
    assert_eq!(unpacked.result.as_ref().unwrap(), &Kind::Folder);
    let expected = ["bootstrap", "link -> pkg", "pkg/", "pkg/žluťoučký.py"];
    assert_eq!(unpacked.list("task"), expected);
    assert_eq!(unpacked.text("task/pkg/žluťoučký.py"), text);
    let mode = fs::metadata(unpacked.path("task/bootstrap")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o7777, 0o755);
}

#[test]
fn nothing_leaves_the_package() {
    for (name, words) in [
        ("../out", "has a `..`"),
        ("a/../../out", "has a `..`"),
        ("/out", "is absolute"),
        ("a\0b", "is not a name"),
    ] {
        unpacked(&[stored(name, b"x")]).refused(words);
    }
    let link = Entry {
        mode: 0o120_777,
        ..stored("d", b"..")
    };
    unpacked(&[link, stored("d/out", b"x")]).refused("goes through a symbolic link");
    let long = Entry {
        mode: 0o120_777,
        ..stored("d", &[b'x'; 1025])
    };
    unpacked(&[long]).refused("is a symbolic link to what cannot be a path");
}

#[test]
fn devices_and_pipes_are_refused() {
    for kind in [0o020_000, 0o060_000, 0o010_000, 0o140_000] {
        let special = Entry {
            mode: kind | 0o600,
            ..stored("x", b"")
        };
        unpacked(&[stored("f", b"f"), special]).refused("\"x\" is a device, pipe or socket");
    }
}

#[test]
fn two_entries_of_one_name_are_refused() {
    unpacked(&[stored("f", b"1"), stored("f", b"2")]).refused("\"f\" is there twice");
    unpacked(&[stored("f", b"1"), stored("./f", b"2")]).refused("\"f\" is there twice");
    unpacked(&[stored("f", b"1"), stored("f/g", b"2")]).refused("is no folder");
}

#[test]
fn a_decompression_bomb_is_refused_while_it_is_read() {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let plain = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    writer.start_file("zeroes", plain).unwrap();
    let zeroes = vec![0; 1024 * 1024];
    for _ in 0..64 {
        writer.write_all(&zeroes).unwrap();
    }
    let bytes = writer.finish().unwrap().into_inner();
    assert!(bytes.len() < 200 * 1024);
    Unpacked::within(&bytes, 1024 * MAX).refused("decompression bomb");
    Unpacked::within(&bytes, 8 * MAX).refused("larger than 8388608 bytes");
}

#[test]
fn a_content_that_is_not_the_one_in_the_table_is_refused() {
    let mut bytes = zip(&[stored("f", b"content")]);
    // The sum in the table is another content's.
    let at = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    bytes[at + 16] ^= 1;
    Unpacked::new(&bytes).refused("the zip's entry \"f\" cannot be read");
}

#[test]
fn encrypted_and_unusually_compressed_entries_are_refused_by_name() {
    let encrypted = Entry {
        flags: 1,
        ..stored("secret", b"0123456789abcdef")
    };
    unpacked(&[encrypted]).refused("the zip's entry \"secret\" cannot be read");
    let unknown = Entry {
        method: 14,
        ..stored("f", b"x")
    };
    unpacked(&[unknown]).refused("the zip's entry \"f\" cannot be read");
}

#[test]
fn two_tables_of_contents_or_none_are_refused() {
    let (one, other) = (zip(&[stored("f", b"1")]), zip(&[stored("g", b"2")]));
    // One archive after the other; one in the comment of the other.
    Unpacked::new(&[one.clone(), other.clone()].concat()).refused("the zip is damaged");
    let mut hidden = one.clone();
    let length = hidden.len();
    hidden[length - 2..].copy_from_slice(&len16(&other));
    hidden.extend(&other);
    let refusal = Unpacked::new(&hidden).refusal();
    assert!(refusal.contains("zip"), "{refusal}");
    Unpacked::new(&one[..one.len() - 1]).refused("it has no end");
    let mut short = one.clone();
    let at = short.windows(4).position(|w| w == b"PK\x05\x06").unwrap();
    short[at + 8] = 2;
    short[at + 10] = 2;
    Unpacked::new(&short).refused("its table of contents is damaged");
    Unpacked::new(&zip(&[])).refused("it has no files");
    let mut split = one;
    split[at + 4] = 1;
    Unpacked::new(&split).refused("in several parts");
}

#[test]
fn a_zip_without_modes_has_ordinary_files() {
    let dos = Entry {
        mode: 0,
        ..stored("app.py", b"app")
    };
    let unpacked = unpacked(&[stored("d/", b""), dos]);
    assert_eq!(unpacked.list("task"), ["app.py", "d/"]);
}

/// Whatever a caller sends: an answer, no panic.
#[test]
fn damaged_zips_never_panic() {
    let good = zip(&[stored("a/b", b"content"), stored("c", b"more")]);
    for at in 0..good.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            let _ = Unpacked::new(&bad).result;
        }
        let _ = Unpacked::new(&good[..at]).result;
    }
}
