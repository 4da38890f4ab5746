//! The function's package: the second disk.
//!
//! ```text
//!  task/                  the function's own files        at /var/task
//!  opt/                   its layers, put together        at /opt
//!  root/                  or a container image's whole root file system
//!  process/arguments      … and what runs in it: words, each ended by a zero byte
//!  process/environment    variables, likewise
//!  process/folder         the working directory
//! ```
//!
//! The agent makes it (`agent/src/images/`).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Where it is mounted, below the new root and out of its reach.
pub const PLACE: &str = "/package";

/// What a container image runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Program and arguments; at least one.
    pub arguments: Vec<OsString>,
    /// Names and values, which a function's own win over.
    pub environment: Vec<(String, String)>,
    /// The working directory.
    pub folder: PathBuf,
}

/// The container image in the package; nothing when it is a folder.
///
/// # Errors
/// When what the agent wrote there cannot be read.
pub fn container(package: &Path) -> io::Result<Option<Container>> {
    let process = package.join("process");
    if !process.is_dir() {
        return Ok(None);
    }
    let arguments = words(&fs::read(process.join("arguments"))?);
    if arguments.is_empty() {
        let reason = "a container image without a command";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let environment = words(&fs::read(process.join("environment"))?);
    let environment = environment
        .iter()
        .filter_map(|word| word.to_str()?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let folder = fs::read(process.join("folder"))?;
    Ok(Some(Container {
        arguments,
        environment,
        folder: PathBuf::from(OsStr::from_bytes(&folder)),
    }))
}

fn words(bytes: &[u8]) -> Vec<OsString> {
    bytes
        .split_inclusive(|byte| *byte == 0)
        .filter_map(|word| word.strip_suffix(&[0]))
        .map(|word| OsStr::from_bytes(word).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_what_the_agent_wrote() {
        let package = tempfile::tempdir().unwrap();
        assert_eq!(container(package.path()).unwrap(), None);
        let process = package.path().join("process");
        fs::create_dir(&process).unwrap();
        fs::write(process.join("arguments"), "/app\0\0two words\0").unwrap();
        fs::write(process.join("environment"), "A=1\0B=x=y\0NONE\0").unwrap();
        fs::write(process.join("folder"), "/srv").unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = Container {
            arguments: ["/app", "", "two words"].map(OsString::from).to_vec(),
            environment: vec![pair("A", "1"), pair("B", "x=y")],
            folder: "/srv".into(),
        };
        assert_eq!(container(package.path()).unwrap(), Some(expected));
        fs::write(process.join("arguments"), "").unwrap();
        assert!(container(package.path()).is_err());
    }
}
