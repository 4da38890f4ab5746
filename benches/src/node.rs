//! A real agent of its own, for the length of one run: it has a temporary state
//! directory and socket, and is gone with everything that it made when it is dropped.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::client::Client;

/// Where the agent's state goes: memory-backed on every Linux host, if root.
const PARENTS: [&str; 2] = ["/run", "/tmp"];
/// How long the agent may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(60);
const START_INTERVAL: Duration = Duration::from_millis(50);
/// How long one attempt to reach it may take.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to end: its own bound for running requests, and some more.
const STOP_LIMIT: Duration = Duration::from_secs(45);
/// How far from its end the log is read, in bytes.
const LOG_TAIL: u64 = 64 * 1024;

/// A running agent.
#[derive(Debug)]
pub struct Node {
    agent: Child,
    folder: TempDir,
    socket: PathBuf,
}

/// The agent could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A program or folder is missing.
    #[error("cannot {doing}")]
    Prepare {
        /// What was tried.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The agent ended by itself.
    #[error("the agent ended: {0}")]
    Ended(ExitStatus),
    /// The agent does not answer.
    #[error("the agent does not answer after {0:?}")]
    Silent(Duration),
    /// The agent did not end.
    #[error("the agent had to be killed: it did not end within {0:?}")]
    Stuck(Duration),
}

fn cannot<T>(result: io::Result<T>, doing: impl FnOnce() -> String) -> Result<T, NodeError> {
    result.map_err(|source| NodeError::Prepare {
        doing: doing(),
        source,
    })
}

impl Node {
    /// Starts the agent in `bin_dir` (with the VMM that lies beside it) with a
    /// configuration (TOML).
    ///
    /// # Errors
    /// When it cannot be started. It may not be [`Self::ready`] yet.
    pub fn start(bin_dir: &Path, assets: &Path, configuration: &str) -> Result<Self, NodeError> {
        let folder = cannot(temporary_folder(), || {
            "make a temporary state directory".to_owned()
        })?;
        Self::start_in(folder, bin_dir, assets, configuration)
    }

    /// Stops this agent and starts another one on its state.
    ///
    /// # Errors
    /// When this one does not end, or the other one cannot be started.
    pub async fn restart(
        mut self,
        bin_dir: &Path,
        assets: &Path,
        configuration: &str,
    ) -> Result<Self, NodeError> {
        self.stop().await?;
        let mut next = Self::start_in(self.folder, bin_dir, assets, configuration)?;
        next.ready().await?;
        Ok(next)
    }

    fn start_in(
        folder: TempDir,
        bin_dir: &Path,
        assets: &Path,
        configuration: &str,
    ) -> Result<Self, NodeError> {
        let config = folder.path().join("config.toml");
        cannot(fs::write(&config, configuration), || {
            format!("write {}", config.display())
        })?;
        let socket = folder.path().join("api.sock");
        let log = folder.path().join("agent.log");
        let log = cannot(File::create(&log), || format!("write {}", log.display()))?;
        let both = cannot(log.try_clone(), || "share the agent's log".to_owned())?;
        let program = bin_dir.join("snapback");
        let agent = Command::new(&program)
            .arg("agent")
            .arg("--config")
            .arg(&config)
            .arg("--socket")
            .arg(&socket)
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .arg("--assets")
            .arg(assets)
            .arg("--vmm")
            .arg(bin_dir.join("snapback-vmm"))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(both)
            .kill_on_drop(true)
            .spawn();
        let agent = cannot(agent, || format!("start {}", program.display()))?;
        Ok(Self {
            agent,
            folder,
            socket,
        })
    }

    /// A caller of this agent.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// Where its API is.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until the agent answers.
    ///
    /// # Errors
    /// When it ends instead, or takes too long.
    pub async fn ready(&mut self) -> Result<(), NodeError> {
        let client = self.client();
        let begin = Instant::now();
        while begin.elapsed() < START_LIMIT {
            if let Some(status) = cannot(self.agent.try_wait(), || "watch the agent".to_owned())? {
                return Err(NodeError::Ended(status));
            }
            let probe = client.send(Method::GET, "/v1/functions", "", PROBE_LIMIT);
            if probe.await.is_ok_and(|answer| answer.status.is_success()) {
                return Ok(());
            }
            sleep(START_INTERVAL).await;
        }
        Err(NodeError::Silent(START_LIMIT))
    }

    /// Asks the agent to end, and waits until it has.
    ///
    /// # Errors
    /// When it has to be killed, or ends with a failure.
    pub async fn stop(&mut self) -> Result<(), NodeError> {
        let pid = self.agent.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // It may have ended at this moment; waiting tells.
            let _ = kill_process(pid, Signal::TERM);
        }
        match timeout(STOP_LIMIT, self.agent.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(NodeError::Ended(status)),
            Ok(Err(source)) => Err(NodeError::Prepare {
                doing: "wait for the agent's end".to_owned(),
                source,
            }),
            Err(_) => {
                // What a kill cannot end, nothing can: dropping tries once more.
                let _ = timeout(PROBE_LIMIT, self.agent.kill()).await;
                Err(NodeError::Stuck(STOP_LIMIT))
            }
        }
    }

    /// The last lines of what the agent wrote.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.folder.path().join("agent.log"), lines)
            .unwrap_or_else(|error| format!("(the agent's log cannot be read: {error})\n"))
    }
}

fn temporary_folder() -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("snapback-bench-");
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for parent in PARENTS {
        match builder.tempdir_in(parent) {
            Ok(folder) => return Ok(folder),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn tail(path: &Path, lines: usize) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = fs::metadata(path)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let mut kept = all[all.len().saturating_sub(lines)..].join("\n");
    kept.push('\n');
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A program in the agent's place.
    fn stand_in(script: &str) -> (TempDir, Node) {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("snapback");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let node = Node::start(folder.path(), Path::new("/assets"), "").unwrap();
        (folder, node)
    }

    #[tokio::test]
    async fn an_agent_that_ends_is_not_waited_for() {
        let (_folder, mut node) = stand_in("echo \"args: $*\"; echo no KVM >&2; exit 3");
        let error = node.ready().await.unwrap_err();
        assert!(matches!(error, NodeError::Ended(status) if status.code() == Some(3)));
        let log = node.log_tail(10);
        assert!(log.contains("no KVM"), "{log}");
        assert!(log.contains("args: agent --config "), "{log}");
        assert!(log.contains("--assets /assets"), "{log}");
        assert_eq!(node.log_tail(1), "no KVM\n");
    }

    #[tokio::test]
    async fn an_agent_is_asked_to_end_and_leaves_nothing() {
        let (_folder, mut node) =
            stand_in("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done");
        while !node.log_tail(1).contains("up") {
            sleep(Duration::from_millis(5)).await;
        }
        node.stop().await.unwrap();
        assert_eq!(node.log_tail(1), "bye\n");
        let state = node.folder.path().to_owned();
        drop(node);
        assert!(!state.exists());
    }

    #[test]
    fn a_missing_program_is_named() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let error = Node::start(Path::new("/nowhere"), Path::new("/"), "").unwrap_err();
        assert_eq!(error.to_string(), "cannot start /nowhere/snapback");
    }
}
