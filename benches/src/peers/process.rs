//! A peer's process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Dial, PeerError, prepare};

/// How much of its log an error shows, in bytes from the end.
const SHOWN: usize = 2000;
/// How often it is looked at while its guest does not answer.
const CHECKED: Duration = Duration::from_secs(1);

/// It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    peer: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, whose output goes to `log`.
    ///
    /// # Errors
    /// When the program or the log cannot be used.
    pub fn start(peer: &'static str, command: &mut Command, log: &Path) -> Result<Self, PeerError> {
        let writing = || prepare(peer, format!("write {}", log.display()));
        let output = fs::File::create(log).map_err(writing())?;
        let errors = output.try_clone().map_err(writing())?;
        let program = PathBuf::from(command.get_program());
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(prepare(peer, format!("start {}", program.display())))?;
        Ok(Self {
            peer,
            child,
            log: log.to_owned(),
        })
    }

    /// Checks that it runs.
    ///
    /// # Errors
    /// When it ended, with what it said.
    pub fn check(&mut self) -> Result<(), PeerError> {
        let peer = self.peer;
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                let said = fs::read(&self.log).unwrap_or_default();
                let end = said.get(said.len().saturating_sub(SHOWN)..);
                Err(PeerError::Ended {
                    peer,
                    status,
                    said: String::from_utf8_lossy(end.unwrap_or_default()).into_owned(),
                })
            }
            Err(source) => Err(prepare(peer, "wait for its process")(source)),
        }
    }

    /// Waits until its guest answers `line`.
    ///
    /// # Errors
    /// When it does not within `limit`, or the process ends.
    pub fn answers(&mut self, dial: &Dial, line: &str, limit: Duration) -> Result<(), PeerError> {
        let begin = Instant::now();
        loop {
            match dial.ask(line, CHECKED.min(limit)) {
                Ok(_) => return Ok(()),
                Err(source) => {
                    self.check()?;
                    if begin.elapsed() >= limit {
                        let peer = self.peer;
                        return Err(PeerError::Silent { peer, source });
                    }
                }
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `program --version` says first.
///
/// # Errors
/// When it cannot be run or does not say.
pub fn version(peer: &'static str, program: &Path) -> Result<String, PeerError> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(prepare(peer, format!("run {}", program.display())))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.trim().to_owned()),
        _ => Err(PeerError::Refused {
            peer,
            command: format!("{} --version", program.display()),
            answer: format!("{}: {text}", output.status),
        }),
    }
}

/// Removes a file that an earlier process may have left.
///
/// # Errors
/// When it is there and stays.
pub fn remove(peer: &'static str, path: &Path) -> Result<(), PeerError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(prepare(peer, format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}
