//! The function that is shown: a folder with its code and its `function.toml`.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The function's folder in the source tree.
const FOLDER: &str = "examples/word-report";
/// Its configuration.
const CONFIGURATION: &str = "function.toml";

/// A function's configuration, in Lambda's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// For example `python3.11`.
    pub runtime: String,
    /// For example `app.handler`.
    pub handler: String,
    /// Memory, in MiB.
    pub memory_mb: u32,
    /// How long a request may run, in seconds.
    pub timeout_s: u32,
}

/// The function cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FunctionError {
    /// It is not where it is looked for.
    #[error("there is no {FOLDER} here or above: run this in the source tree or name its folder")]
    NotFound,
    /// Its configuration cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its configuration is not what it should be.
    #[error("{} is not a function's configuration", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
}

impl Function {
    /// Reads the configuration in a function's folder.
    ///
    /// # Errors
    /// When there is none, or it says something else.
    pub fn load(folder: &Path) -> Result<Self, FunctionError> {
        let path = folder.join(CONFIGURATION);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(FunctionError::Read { path, source }),
        };
        toml::from_str(&text).map_err(|source| FunctionError::Parse {
            path,
            source: Box::new(source),
        })
    }
}

/// The source tree around the current directory or this program.
///
/// # Errors
/// When there is none.
pub fn source_tree() -> Result<PathBuf, FunctionError> {
    let starts = [env::current_dir(), env::current_exe()];
    let mut above = starts.iter().flatten().flat_map(|start| start.ancestors());
    above
        .find(|folder| folder.join(FOLDER).join(CONFIGURATION).is_file())
        .map(Path::to_owned)
        .ok_or(FunctionError::NotFound)
}

/// The function's folder in a source tree.
#[must_use]
pub fn folder(source_tree: &Path) -> PathBuf {
    source_tree.join(FOLDER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_has_a_valid_configuration() {
        let folder = folder(&source_tree().unwrap());
        let function = Function::load(&folder).unwrap();
        assert_eq!(function.handler, "app.handler");
        assert!(folder.join("app.py").is_file());
    }

    #[test]
    fn a_wrong_configuration_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let gone = Function::load(folder.path());
        assert!(matches!(gone, Err(FunctionError::Read { .. })));
        fs::write(folder.path().join(CONFIGURATION), "name = 1").unwrap();
        let wrong = Function::load(folder.path());
        assert!(matches!(wrong, Err(FunctionError::Parse { .. })));
    }
}
