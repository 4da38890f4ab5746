//! The texts that the demonstration sends: real documents that are on every Debian
//! host, and the project's own.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Debian's package `base-files` has them.
pub const LICENCES: &str = "/usr/share/common-licenses";

/// Sizes that are sent, in bytes: shorter is no text, longer only slow.
const SIZES: std::ops::RangeInclusive<usize> = 200..=256 * 1024;
/// How deep a folder is searched.
const DEPTH: usize = 6;
/// Folders that hold no documents.
const SKIPPED: [&str; 2] = ["target", "node_modules"];

/// One text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its file's name.
    pub title: String,
    /// Its content.
    pub text: String,
}

/// There is nothing to send.
#[derive(Debug, thiserror::Error)]
pub enum DocumentsError {
    /// A folder that the caller named cannot be read.
    #[error("the documents in {} cannot be read", folder.display())]
    Folder {
        /// Which folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No file is a document.
    #[error("there is no document (a text file of a fitting size) in {}", joined(.0))]
    None(Vec<PathBuf>),
}

fn joined(folders: &[PathBuf]) -> String {
    let names: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    names.join(", ")
}

/// Every document in `folders`, each file once, in the order of folders and names.
///
/// # Errors
/// When a folder cannot be read or there is none.
pub fn find(folders: &[PathBuf]) -> Result<Vec<Document>, DocumentsError> {
    let mut seen = BTreeSet::new();
    let mut documents = Vec::new();
    for folder in folders {
        let mut paths = Vec::new();
        collect(folder, DEPTH, &mut paths).map_err(|source| DocumentsError::Folder {
            folder: folder.clone(),
            source,
        })?;
        paths.sort();
        for path in paths {
            // Licences have links to their newest version.
            let Ok(file) = path.canonicalize() else {
                continue;
            };
            if seen.insert(file.clone())
                && let Some(text) = text_of(&file)
            {
                let title = file.strip_prefix(folder).unwrap_or(&file);
                let title = title.display().to_string();
                documents.push(Document { title, text });
            }
        }
    }
    if documents.is_empty() {
        return Err(DocumentsError::None(folders.to_vec()));
    }
    Ok(documents)
}

/// Files without an extension, or with one of text.
fn collect(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || SKIPPED.contains(&name.as_ref()) {
            continue;
        }
        if path.is_dir() {
            if depth > 0 && !path.is_symlink() {
                // What cannot be read further down is left out.
                let _ = collect(&path, depth - 1, paths);
            }
        } else if is_text_name(folder, &path) {
            paths.push(path);
        }
    }
    Ok(())
}

/// `GPL-1.2` has no extension: its folder has nothing but texts.
fn is_text_name(folder: &Path, path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    folder == Path::new(LICENCES) || matches!(extension, Some("md" | "txt"))
}

fn text_of(file: &Path) -> Option<String> {
    let length = usize::try_from(fs::metadata(file).ok()?.len()).ok()?;
    if !SIZES.contains(&length) {
        return None;
    }
    fs::read_to_string(file).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn documents_are_found_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        let text = "Some words. ".repeat(30);
        for name in [
            "b.md",
            "a.txt",
            "c.rs",
            "sub/d.md",
            "target/e.md",
            ".f/g.md",
        ] {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &text).unwrap();
        }
        fs::write(root.join("short.md"), "short").unwrap();
        fs::write(root.join("bytes.md"), [0xff; 500]).unwrap();
        symlink("b.md", root.join("link.md")).unwrap();
        symlink(".", root.join("loop")).unwrap();
        let found = find(std::slice::from_ref(&root)).unwrap();
        let titles: Vec<&str> = found.iter().map(|d| d.title.as_str()).collect();
        assert_eq!(titles, ["a.txt", "b.md", "sub/d.md"]);
        assert_eq!(found[0].text, text);
    }

    #[test]
    fn nothing_to_send_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        assert!(matches!(find(&[root]), Err(DocumentsError::None(_))));
        let gone = find(&["/nowhere".into()]);
        assert!(matches!(gone, Err(DocumentsError::Folder { .. })));
    }

    #[test]
    fn debian_has_documents() {
        let found = find(&[LICENCES.into()]).unwrap();
        assert!(found.len() >= 10, "{}", found.len());
        assert!(found.iter().any(|d| d.title == "GPL-3"));
    }
}
