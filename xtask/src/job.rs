//! A command that needs KVM, with everything it needs to run the same natively and in the box.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::workspace;

/// A command and its surroundings.
#[derive(Clone, Debug)]
pub struct Job {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment variables beside the inherited ones.
    pub environment: Vec<(String, String)>,
    /// The directory to run in.
    pub directory: PathBuf,
    /// Directories that the command writes results into; all else that it writes may be lost.
    pub shares: Vec<PathBuf>,
    /// Directories that it reads, wherever they are.
    pub visible: Vec<PathBuf>,
}

impl Job {
    /// A job that runs `command` in the current directory and sees the source tree and the
    /// build's output.
    pub fn new(command: Vec<String>) -> Result<Self> {
        let directory =
            std::env::current_dir().context("the current directory does not exist any more")?;
        Ok(Self {
            command,
            environment: Vec::new(),
            visible: vec![
                directory.clone(),
                workspace::root().to_owned(),
                workspace::target(),
            ],
            directory,
            shares: Vec::new(),
        })
    }

    /// Adds an environment variable.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.environment.push((name.to_owned(), value.into()));
    }
}
