//! The functions that are measured: one that does nothing, for each runtime.

use std::path::{Path, PathBuf};

use crate::function::{self, CreateError, Function, FunctionError};

/// Where the function in Python is, in the source tree.
const PYTHON: &str = "benches/functions/noop";
/// The name of the one that brings its own runtime, among the functions that were built.
const PROVIDED: &str = "noop-rust";

/// A function that does nothing.
#[derive(Debug, Clone)]
pub struct Subject {
    /// For rows: `python`.
    pub runtime: &'static str,
    /// Its code and configuration.
    pub folder: PathBuf,
    /// What it is called at the agent.
    pub name: String,
}

/// A function is not there or was not created.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// It is not there.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// It was not created.
    #[error(transparent)]
    Create(#[from] CreateError),
}

/// The function in Python's folder.
///
/// # Errors
/// When it is not found.
pub fn python() -> Result<PathBuf, FunctionError> {
    Ok(function::source_tree(PYTHON)?.join(PYTHON))
}

/// The folder of the function that brings its own runtime, among those that were built.
#[must_use]
pub fn provided(built: &Path) -> PathBuf {
    built.join(PROVIDED)
}

/// Lets the agent on `socket` boot and snapshot each function. `built` is where
/// those are that had to be built.
///
/// # Errors
/// When one is missing or refused.
pub async fn create(
    bin_dir: &Path,
    built: &Path,
    socket: &Path,
) -> Result<Vec<Subject>, SubjectError> {
    let folders = [("provided", provided(built)), ("python", python()?)];
    let mut subjects = Vec::new();
    for (runtime, folder) in folders {
        let function = Function::load(&folder)?;
        function::create(bin_dir, &folder, &function, socket).await?;
        subjects.push(Subject {
            runtime,
            folder,
            name: function.name,
        });
    }
    Ok(subjects)
}
