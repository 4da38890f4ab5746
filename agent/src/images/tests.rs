//! Archives that work and archives that must not.

use std::os::unix::fs::PermissionsExt as _;

use tar::{Builder, EntryType, Header};

use super::unpack::unpack;
use super::*;

const MAX: u64 = 1024 * 1024;

/// An entry with any name: the library's own setters refuse the bad ones.
fn entry(kind: EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Vec<u8> {
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

fn file(name: &str) -> Vec<u8> {
    entry(EntryType::Regular, name, "", 0o600, b"content")
}

fn unpacked(entries: &[Vec<u8>]) -> (tempfile::TempDir, Result<(), UnpackError>) {
    let mut archive = entries.concat();
    archive.extend_from_slice(&[0; 1024]);
    let outside = tempfile::tempdir().unwrap();
    let to = outside.path().join("to");
    fs::create_dir(&to).unwrap();
    let result = unpack(archive.as_slice(), &to, MAX);
    (outside, result)
}

#[test]
fn a_folder_comes_out_as_it_went_in() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("pkg")).unwrap();
    fs::write(source.path().join("app.py"), "app").unwrap();
    fs::write(source.path().join("pkg/run"), "run").unwrap();
    fs::set_permissions(
        source.path().join("pkg/run"),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    std::os::unix::fs::symlink("pkg/run", source.path().join("link")).unwrap();
    let mut builder = Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", source.path()).unwrap();
    let archive = builder.into_inner().unwrap();

    let to = tempfile::tempdir().unwrap();
    unpack(archive.as_slice(), to.path(), MAX).unwrap();
    assert_eq!(fs::read_to_string(to.path().join("link")).unwrap(), "run");
    let mode = |path| {
        fs::metadata(to.path().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode("app.py"), mode("pkg/run")), (0o644, 0o755));
}

#[test]
fn nothing_leaves_the_folder() {
    for name in ["../out", "/out", "a/../../out"] {
        let (outside, result) = unpacked(&[file(name)]);
        assert!(matches!(result, Err(UnpackError::Path { .. })), "{name}");
        assert!(!outside.path().join("out").exists());
    }
}

#[test]
fn a_link_is_never_followed() {
    let link = entry(EntryType::Symlink, "d", "..", 0o777, b"");
    // A file below a link, before and after it; a link below a link.
    let cases = [
        vec![link.clone(), file("d/out")],
        vec![file("d/out"), link.clone()],
        vec![
            file("f"),
            link.clone(),
            entry(EntryType::Symlink, "d/out", "x", 0o777, b""),
        ],
    ];
    for (number, entries) in cases.iter().enumerate() {
        let (outside, result) = unpacked(entries);
        assert!(result.is_err(), "case {number}");
        assert!(!outside.path().join("out").exists(), "case {number}");
    }
}

#[test]
fn what_is_no_file_folder_or_symbolic_link_is_refused() {
    for kind in [
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::Link,
    ] {
        let (_, result) = unpacked(&[file("f"), entry(kind, "x", "f", 0o600, b"")]);
        assert!(matches!(result, Err(UnpackError::Kind { .. })), "{kind:?}");
    }
}

#[test]
fn twice_empty_and_too_large_are_refused() {
    let (_, result) = unpacked(&[file("f"), file("./f")]);
    assert!(matches!(result, Err(UnpackError::Twice { .. })));
    let (_, result) = unpacked(&[entry(EntryType::Directory, "d/", "", 0o755, b"")]);
    assert!(matches!(result, Err(UnpackError::Empty)));
    let half = vec![0; usize::try_from(MAX).unwrap() / 2 + 1];
    let large = |name| entry(EntryType::Regular, name, "", 0o600, &half);
    let (_, result) = unpacked(&[large("a"), large("b")]);
    assert!(matches!(
        result,
        Err(UnpackError::TooLarge { max_bytes: MAX })
    ));
}

#[test]
fn a_cut_archive_is_an_error() {
    let to = tempfile::tempdir().unwrap();
    let archive = file("f");
    assert!(unpack(&archive[..515], to.path(), MAX).is_err());
}

#[tokio::test]
async fn the_same_code_is_one_image() {
    let state = tempfile::tempdir().unwrap();
    let limit = Duration::from_secs(60);
    let images = Images::open(state.path().join("images"), MAX, limit).unwrap();
    let mut digests = Vec::new();
    for _ in 0..2 {
        let workspace = images.workspace().unwrap();
        let archive = workspace.path().join("archive");
        let mut bytes = file("app.py");
        bytes.extend_from_slice(&[0; 1024]);
        fs::write(&archive, bytes).unwrap();
        digests.push(images.import(&workspace, archive).await.unwrap());
    }
    assert_eq!(digests[0], digests[1]);
    assert!(images.contains(&digests[0]));
    assert_eq!(
        fs::read_dir(state.path().join("images")).unwrap().count(),
        1
    );
    images.keep_only(&digests);
    assert!(images.contains(&digests[0]));
    images.keep_only(&[]);
    assert!(!images.contains(&digests[0]));
}
