//! Packages that work, and packages that must not.

mod archives;
mod containers;
mod folders;
mod zips;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::*;

const MAX: u64 = 1024 * 1024;

/// What became of a package, in a folder whose surroundings nothing may touch.
struct Unpacked {
    outside: tempfile::TempDir,
    result: Result<Kind, UnpackError>,
}

impl Unpacked {
    /// Unpacks an archive, at most `max_bytes` of content.
    fn within(archive: &[u8], max_bytes: u64) -> Self {
        let outside = tempfile::tempdir().unwrap();
        let [to, scratch] = ["to", "scratch"].map(|name| outside.path().join(name));
        fs::create_dir(&to).unwrap();
        fs::create_dir(&scratch).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(archive).unwrap();
        file.rewind().unwrap();
        let result = unpack(file, &to, &scratch, max_bytes);
        // Nothing of any package ever stands beside the two folders.
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
        Self { outside, result }
    }

    fn new(archive: &[u8]) -> Self {
        Self::within(archive, MAX)
    }

    /// Where a path of the package came to be.
    #[track_caller]
    fn path(&self, path: &str) -> PathBuf {
        self.result.as_ref().unwrap();
        self.outside.path().join("to").join(path)
    }

    #[track_caller]
    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Everything below a folder: `name/` for folders, `name -> target` for links.
    #[track_caller]
    fn list(&self, folder: &str) -> Vec<String> {
        fn walk(folder: &Path, above: &str, all: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{above}{}", entry.file_name().to_str().unwrap());
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    all.push(format!("{name}/"));
                    walk(&entry.path(), &format!("{name}/"), all);
                } else if kind.is_symlink() {
                    let target = fs::read_link(entry.path()).unwrap();
                    all.push(format!("{name} -> {}", target.to_str().unwrap()));
                } else {
                    all.push(name);
                }
            }
        }
        let mut all = Vec::new();
        walk(&self.path(folder), "", &mut all);
        all.sort();
        all
    }

    /// The refusal in words, with its sources.
    #[track_caller]
    fn refusal(&self) -> String {
        let error = self.result.as_ref().unwrap_err();
        snapback_proto::words::chain(error)
    }

    /// Checks that it was refused with these words.
    #[track_caller]
    fn refused(&self, words: &str) {
        let refusal = self.refusal();
        assert!(refusal.contains(words), "{words:?} is not in {refusal:?}");
    }
}
