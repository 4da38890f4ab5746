//! What becomes of a container image: a root file system, and the command to run in it.
//!
//! ```text
//!  root/                  all layers
//!  process/arguments      Entrypoint and Cmd, each word ended by a zero byte
//!  process/environment    Env, likewise
//!  process/folder         WorkingDir
//! ```
//!
//! guest-init reads them: `guest-init/src/package.rs`.

use std::fs;
use std::path::Path;

use oci_spec::image::ImageConfiguration;

use super::error::OciError;
use crate::images::package::refused::{UnpackError, io_error};
use crate::images::package::spool::Spool;
use crate::images::package::tree::Tree;
use crate::images::package::write;

/// All words of a command, or all variables, in bytes.
const MAX_WORDS: usize = 64 * 1024;
/// Where a process is that was not told otherwise.
const DEFAULT_FOLDER: &str = "/";

/// A container image, ready to be packed.
#[derive(Debug)]
pub struct Image {
    tree: Tree,
    arguments: Vec<u8>,
    environment: Vec<u8>,
    folder: String,
}

impl Image {
    /// Of all layers and the configuration.
    pub fn new(tree: Tree, config: &ImageConfiguration) -> Result<Self, OciError> {
        let none = Vec::new();
        let config = config.config().as_ref();
        let words = |list: Option<&Vec<String>>| list.unwrap_or(&none).clone();
        let mut arguments = words(config.and_then(|c| c.entrypoint().as_ref()));
        arguments.extend(words(config.and_then(|c| c.cmd().as_ref())));
        if arguments.is_empty() {
            return Err(OciError::NoCommand);
        }
        let environment = words(config.and_then(|c| c.env().as_ref()));
        let folder = config
            .and_then(|c| c.working_dir().clone())
            .filter(|folder| !folder.is_empty())
            .unwrap_or_else(|| DEFAULT_FOLDER.to_owned());
        Ok(Self {
            tree,
            arguments: terminated(&arguments).ok_or(OciError::Unusable("Entrypoint or Cmd"))?,
            environment: terminated(&environment).ok_or(OciError::Unusable("Env"))?,
            folder: terminated(std::slice::from_ref(&folder))
                .map(|_| folder)
                .ok_or(OciError::Unusable("WorkingDir"))?,
        })
    }

    /// Writes it below the empty folder `to`.
    pub fn write(&self, to: &Path, spool: &Spool) -> Result<(), UnpackError> {
        write::write(&self.tree, &to.join("root"), spool)?;
        let process = to.join("process");
        fs::create_dir(&process)
            .and_then(|()| fs::write(process.join("arguments"), &self.arguments))
            .and_then(|()| fs::write(process.join("environment"), &self.environment))
            .and_then(|()| fs::write(process.join("folder"), &self.folder))
            .map_err(io_error("unpacking"))
    }
}

/// Words, each ended by a zero byte; nothing when that cannot be.
fn terminated(words: &[String]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for word in words {
        if word.contains('\0') {
            return None;
        }
        bytes.extend_from_slice(word.as_bytes());
        bytes.push(0);
    }
    (bytes.len() <= MAX_WORDS).then_some(bytes)
}
