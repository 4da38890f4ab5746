//! Runs `mkfs.erofs` and `fsck.erofs` (Debian: erofs-utils).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;

use super::Kind;

const PACK: &str = "mkfs.erofs";
const EXTRACT: &str = "fsck.erofs";

/// The same tree makes the same image: fixed times and owner.
const ARGUMENTS: [&str; 3] = ["-T0", "--all-root", "-x-1"];

/// The image's UUID says what it holds: the last byte is 0 for a folder, 1 for a container.
const UUID_PREFIX: &str = "00000000-0000-0000-0000-00000000000";
/// Where the UUID's last byte is: byte 48 + 15 of the superblock (`struct erofs_super_block`),
/// which begins at byte 1024.
const UUID_END: u64 = 1024 + 48 + 15;

/// How much of the program's complaint is kept, in bytes.
const MAX_COMPLAINT: usize = 2000;

/// An image could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The program is not installed.
    #[error("{0} is not installed: install erofs-utils")]
    Missing(&'static str),
    /// The program could not be started.
    #[error("{program} could not be started")]
    Start {
        /// Which program.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program failed.
    #[error("{program} ended with {status}: {complaint}")]
    Failed {
        /// Which program.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it said last.
        complaint: String,
    },
    /// The program took too long.
    #[error("{program} took longer than {limit:?}")]
    Timeout {
        /// Which program.
        program: &'static str,
        /// The bound.
        limit: Duration,
    },
}

/// Packs the folder `tree` into the new file `image`, within `limit`.
pub(super) async fn pack(
    tree: &Path,
    image: &Path,
    kind: Kind,
    limit: Duration,
) -> Result<(), PackError> {
    let uuid = match kind {
        Kind::Folder => 0,
        Kind::Container => 1,
    };
    let mut command = Command::new(PACK);
    command
        .args(ARGUMENTS)
        .arg(format!("-U{UUID_PREFIX}{uuid}"))
        .args([image, tree]);
    run(PACK, command, limit).await
}

/// Makes the new folder `tree` of what [`pack`] has packed, within `limit`.
pub(super) async fn extract(image: &Path, tree: &Path, limit: Duration) -> Result<(), PackError> {
    let mut extract = std::ffi::OsString::from("--extract=");
    extract.push(tree);
    let mut command = Command::new(EXTRACT);
    command.arg(extract).arg(image);
    run(EXTRACT, command, limit).await
}

/// What an image of ours holds.
pub(super) fn kind(image: &Path) -> io::Result<Kind> {
    let mut last = [0];
    File::open(image)?.read_exact_at(&mut last, UUID_END)?;
    Ok(match last {
        [1] => Kind::Container,
        _ => Kind::Folder,
    })
}

async fn run(
    program: &'static str,
    mut command: Command,
    limit: Duration,
) -> Result<(), PackError> {
    let start = |source| PackError::Start { program, source };
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PackError::Missing(program),
            _ => start(error),
        })?;
    let output = tokio::time::timeout(limit, child.wait_with_output())
        .await
        .map_err(|_| PackError::Timeout { program, limit })?
        .map_err(start)?;
    if output.status.success() {
        return Ok(());
    }
    let end = output.stderr.len().saturating_sub(MAX_COMPLAINT);
    let complaint = String::from_utf8_lossy(&output.stderr[end..])
        .trim()
        .to_owned();
    Err(PackError::Failed {
        program,
        status: output.status,
        complaint,
    })
}
