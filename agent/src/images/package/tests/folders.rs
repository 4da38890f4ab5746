//! Folders, as tar archives.

use std::os::unix::fs::PermissionsExt as _;

use tar::{Builder, EntryType};

use super::archives::*;
use super::*;

fn unpacked(entries: &[Vec<u8>]) -> Unpacked {
    Unpacked::new(&tar(entries))
}

#[test]
fn a_folder_comes_out_as_it_went_in() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("pkg")).unwrap();
    fs::write(source.path().join("app.py"), "app").unwrap();
    fs::write(source.path().join("pkg/run"), "run").unwrap();
    let long = "n".repeat(200);
    fs::write(source.path().join(&long), "long").unwrap();
    let executable = fs::Permissions::from_mode(0o700);
    fs::set_permissions(source.path().join("pkg/run"), executable).unwrap();
    std::os::unix::fs::symlink("pkg/run", source.path().join("link")).unwrap();
    let mut builder = Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", source.path()).unwrap();

    let unpacked = Unpacked::new(&builder.into_inner().unwrap());
    assert_eq!(unpacked.result.as_ref().unwrap(), &Kind::Folder);
    let expected = [
        "app.py",
        "link -> pkg/run",
        long.as_str(),
        "pkg/",
        "pkg/run",
    ];
    assert_eq!(unpacked.list("task"), expected);
    assert_eq!(unpacked.text("task/link"), "run");
    let mode = |path| {
        let metadata = fs::metadata(unpacked.path(path)).unwrap();
        metadata.permissions().mode() & 0o7777
    };
    assert_eq!((mode("task/app.py"), mode("task/pkg/run")), (0o644, 0o755));
    assert_eq!((mode("task"), mode("task/pkg")), (0o755, 0o755));
}

#[test]
fn nothing_leaves_the_package() {
    for (name, words) in [
        ("../out", "has a `..`"),
        ("a/../../out", "has a `..`"),
        ("/out", "is absolute"),
    ] {
        unpacked(&[file(name)]).refused(words);
        // The same through a long name and through a pax header.
        unpacked(&[long_name(name), file("x")]).refused(words);
        unpacked(&[pax("path", name), file("x")]).refused(words);
    }
}

#[test]
fn a_link_is_never_followed_wherever_it_leads() {
    for target in ["..", "/etc", ".", "f"] {
        let link = link("d", target);
        // A file below a link, before and after it; a link below a link.
        let cases = [
            (
                vec![link.clone(), file("d/out")],
                "goes through a symbolic link",
            ),
            (vec![file("d/out"), link.clone()], "is there twice"),
            (
                vec![file("f"), link.clone(), super::archives::link("d/out", "x")],
                "goes through a symbolic link",
            ),
        ];
        for (entries, words) in cases {
            unpacked(&entries).refused(words);
        }
    }
    // A link itself is the function's own affair.
    let unpacked = unpacked(&[file("f"), link("away", "../../../etc/passwd")]);
    assert_eq!(unpacked.list("task"), ["away -> ../../../etc/passwd", "f"]);
}

#[test]
fn what_is_no_file_folder_or_symbolic_link_is_refused_by_its_name_and_kind() {
    for (kind, words) in [
        (EntryType::Char, "\"x\" is a character device"),
        (EntryType::Block, "\"x\" is a block device"),
        (EntryType::Fifo, "\"x\" is a named pipe"),
        (EntryType::Link, "\"x\" is a hard link"),
        (EntryType::GNUSparse, "\"x\" is a sparse file"),
        (EntryType::new(b'Z'), "\"x\" is a entry of an unknown kind"),
    ] {
        unpacked(&[file("f"), entry(kind, "x", "f", 0o600, b"")]).refused(words);
    }
}

#[test]
fn two_entries_of_one_name_are_refused() {
    unpacked(&[file("f"), file("./f")]).refused("\"f\" is there twice");
    unpacked(&[file("f"), link("f", "g")]).refused("is there twice");
    unpacked(&[file("f"), folder("f")]).refused("is there twice");
    unpacked(&[folder("f"), file("f")]).refused("is there twice");
    unpacked(&[file("f"), file("f/g")]).refused("goes through something that is no folder");
    // A folder may be named again.
    assert_eq!(
        unpacked(&[folder("d/"), file("d/f"), folder("d/")]).list("task"),
        ["d/", "d/f"]
    );
}

#[test]
fn empty_large_and_endless_packages_are_refused() {
    unpacked(&[folder("d/")]).refused("it has no files");
    unpacked(&[]).refused("it has no files");
    let half = vec![0; usize::try_from(MAX).unwrap() / 2 + 1];
    let large = |name| entry(EntryType::Regular, name, "", 0o600, &half);
    unpacked(&[large("a"), large("b")]).refused("larger than 1048576 bytes");
    let many: Vec<_> = (0..=budget::MAX_ENTRIES)
        .map(|number| folder(&number.to_string()))
        .collect();
    unpacked(&many).refused("more than 100000 files");
}

#[test]
fn names_and_paths_have_limits() {
    let name = |length: usize| "n".repeat(length);
    assert_eq!(
        unpacked(&[long_name(&name(255)), file("x")]).list("task"),
        [name(255)]
    );
    unpacked(&[long_name(&name(256)), file("x")]).refused("one of its names than 255");
    let long = vec![name(200); 6].join("/");
    unpacked(&[long_name(&long), file("x")]).refused("longer than 1024 bytes");
    let deep = |depth: usize| vec!["d"; depth].join("/");
    assert!(unpacked(&[long_name(&deep(64)), file("x")]).result.is_ok());
    unpacked(&[long_name(&deep(65)), file("x")]).refused("deeper than 64 folders");
    // A header that claims a name of a hundred thousand bytes is not even read.
    unpacked(&[long_name(&name(100_000)), file("x")]).refused("an extended header is too long");
    let target = vec!["t".repeat(200); 6].join("/");
    unpacked(&[file("f"), pax("linkpath", &target), link("l", "")])
        .refused("is a symbolic link to what cannot be a path");
}

#[test]
fn extended_headers_cannot_change_what_an_archive_says() {
    unpacked(&[pax("size", "0"), file("f")]).refused("changes a file's size");
    unpacked(&[pax("GNU.sparse.major", "1"), file("f")]).refused("sparse files");
    // Of times and owners nothing is taken.
    let unpacked = unpacked(&[pax("mtime", "1"), file("f")]);
    assert_eq!(unpacked.text("task/f"), "content");
}

#[test]
fn a_cut_or_damaged_archive_is_refused() {
    let whole = tar(&[file("f"), file("g")]);
    Unpacked::new(&whole[..515]).refused("reading the tar archive");
    let mut damaged = whole.clone();
    damaged[0] ^= 0x20;
    Unpacked::new(&damaged).refused("reading the tar archive");
    for other in [&b""[..], b"text", &[b'x'; 2000]] {
        Unpacked::new(other).refused("it is neither a zip nor a tar archive");
    }
    Unpacked::new(b"\x1f\x8b\x08").refused("it is compressed with gzip");
}
