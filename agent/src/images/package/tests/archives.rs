//! Tar archives, written byte by byte: the library's own setters refuse bad names.

use tar::{EntryType, Header};

/// A header and what follows it.
pub fn entry(kind: EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(u64::try_from(content.len()).unwrap());
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub fn file(name: &str) -> Vec<u8> {
    holding(name, "content")
}

pub fn holding(name: &str, content: &str) -> Vec<u8> {
    entry(EntryType::Regular, name, "", 0o600, content.as_bytes())
}

pub fn program(name: &str) -> Vec<u8> {
    entry(EntryType::Regular, name, "", 0o700, b"content")
}

pub fn folder(name: &str) -> Vec<u8> {
    entry(EntryType::Directory, name, "", 0o700, b"")
}

pub fn link(name: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Symlink, name, target, 0o777, b"")
}

pub fn hard_link(name: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Link, name, target, 0o777, b"")
}

/// A GNU long name for the next entry.
pub fn long_name(name: &str) -> Vec<u8> {
    let mut content = name.as_bytes().to_vec();
    content.push(0);
    entry(EntryType::GNULongName, "././@LongLink", "", 0, &content)
}

/// A pax header for the next entry.
pub fn pax(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    // The length counts its own digits.
    let length = (1..6)
        .map(|digits| rest.len() + digits)
        .find(|length| length.to_string().len() + rest.len() == *length)
        .unwrap();
    let record = format!("{length}{rest}");
    entry(EntryType::XHeader, "pax", "", 0, record.as_bytes())
}

pub fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut archive = entries.concat();
    archive.extend_from_slice(&[0; 1024]);
    archive
}
