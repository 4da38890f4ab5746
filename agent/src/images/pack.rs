//! Runs `mkfs.erofs` (Debian: erofs-utils).

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// The same tree makes the same image: fixed times, owner and identity.
const ARGUMENTS: [&str; 4] = [
    "-T0",
    "--all-root",
    "-U00000000-0000-0000-0000-000000000000",
    "-x-1",
];

/// How much of the program's complaint is kept, in bytes.
const MAX_COMPLAINT: usize = 2000;

/// An image could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The program is not installed.
    #[error("mkfs.erofs is not installed: install erofs-utils")]
    Missing,
    /// The program could not be started.
    #[error("mkfs.erofs could not be started")]
    Start(#[source] io::Error),
    /// The program failed.
    #[error("mkfs.erofs ended with {status}: {complaint}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it said last.
        complaint: String,
    },
    /// The program took too long.
    #[error("mkfs.erofs took longer than {0:?}")]
    Timeout(Duration),
}

/// Packs the folder `tree` into the new file `image`, within `limit`.
pub(super) async fn pack(tree: &Path, image: &Path, limit: Duration) -> Result<(), PackError> {
    let child = Command::new("mkfs.erofs")
        .args(ARGUMENTS)
        .arg(image)
        .arg(tree)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PackError::Missing,
            _ => PackError::Start(error),
        })?;
    let output = tokio::time::timeout(limit, child.wait_with_output())
        .await
        .map_err(|_| PackError::Timeout(limit))?
        .map_err(PackError::Start)?;
    if output.status.success() {
        return Ok(());
    }
    let end = output.stderr.len().saturating_sub(MAX_COMPLAINT);
    let complaint = String::from_utf8_lossy(&output.stderr[end..])
        .trim()
        .to_owned();
    Err(PackError::Failed {
        status: output.status,
        complaint,
    })
}
