//! The command line, as a person uses it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::given;

/// How a command ended.
#[derive(Debug)]
pub struct Run {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that it failed, with these words.
    pub fn refuses(&self, words: &str) {
        assert!(
            !self.success && self.stderr.contains(words),
            "{words:?} is not in {self:?}"
        );
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs `snapback` without an agent.
pub fn snapback(arguments: &[&str]) -> Run {
    let program = given("SNAPBACK_BIN_DIR").join("snapback");
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap()
        .into()
}

/// Runs a command of `snapback` that speaks to the agent at `socket`.
pub fn client(socket: &Path, arguments: &[&str], input: &[u8]) -> Run {
    let mut child = Command::new(given("SNAPBACK_BIN_DIR").join("snapback"))
        .args(arguments)
        .env("SNAPBACK_SOCKET", socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may end without reading.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap().into()
}
