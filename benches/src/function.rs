//! A function to measure: a folder with its code and its `function.toml`.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hyper::Method;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;

use crate::client::{Client, ClientError};
use crate::facts::{self, Build};

/// Its configuration.
const CONFIGURATION: &str = "function.toml";
/// How long it may take to be booted and snapshotted.
const CREATE_LIMIT: Duration = Duration::from_secs(240);
/// How long the agent may take to describe it.
const DESCRIBE_LIMIT: Duration = Duration::from_secs(30);

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
    #[error("there is no {folder} here or above: run this in the source tree or name its folder")]
    NotFound {
        /// The folder.
        folder: &'static str,
    },
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

/// The function was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The command line cannot be run.
    #[error("cannot run {}", program.display())]
    Command {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The agent or its command line did not do it; what it said.
    #[error("the function was not created: {0}")]
    Refused(String),
    /// The agent does not describe it.
    #[error(transparent)]
    Client(#[from] ClientError),
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

/// The source tree around the current directory or this program that has a function in
/// `folder`.
///
/// # Errors
/// When there is none.
pub fn source_tree(folder: &'static str) -> Result<PathBuf, FunctionError> {
    let starts = [env::current_dir(), env::current_exe()];
    let mut above = starts.iter().flatten().flat_map(|start| start.ancestors());
    above
        .find(|above| above.join(folder).join(CONFIGURATION).is_file())
        .map(Path::to_owned)
        .ok_or(FunctionError::NotFound { folder })
}

/// Lets the agent on `socket` boot and snapshot a function, through the command line as
/// a person would.
///
/// # Errors
/// When it does not succeed, or not in time.
pub async fn create(
    bin_dir: &Path,
    folder: &Path,
    function: &Function,
    socket: &Path,
) -> Result<Build, CreateError> {
    let program = bin_dir.join("snapback");
    let output = Command::new(&program)
        .args(["function", "create", &function.name])
        .args(["--runtime", &function.runtime])
        .args(["--handler", &function.handler])
        .args(["--memory", &function.memory_mb.to_string()])
        .args(["--timeout", &function.timeout_s.to_string()])
        .arg("--code")
        .arg(folder)
        .arg("--socket")
        .arg(socket)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match timeout(CREATE_LIMIT, output).await {
        Ok(Ok(output)) => output,
        Ok(Err(source)) => return Err(CreateError::Command { program, source }),
        Err(_) => return Err(CreateError::Refused(format!("not within {CREATE_LIMIT:?}"))),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(CreateError::Refused(said.trim().to_owned()));
    }
    let path = format!("/v1/functions/{}", function.name);
    let client = Client::new(socket);
    let answer = client.send(Method::GET, &path, "", DESCRIBE_LIMIT).await?;
    Ok(answer.json::<facts::Function>()?.build)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_has_a_valid_configuration() {
        let folder = "examples/word-report";
        let folder = source_tree(folder).unwrap().join(folder);
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
