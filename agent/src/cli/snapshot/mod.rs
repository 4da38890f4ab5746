//! `snapback snapshot inspect|verify|diff`: snapshots in their directories, without an
//! agent.

mod compare;
mod inspect;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use snapback_vmm::snapshot::manifest::SnapshotId;

use crate::snapshots::SnapshotFiles;

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Tell what a snapshot is: machine, processor, sections, memory, bases.
    Inspect(OneSnapshot),
    /// Check every hash of a snapshot and its memory, and name what is damaged.
    Verify(OneSnapshot),
    /// Tell in which sections and pages two snapshots differ; the exit status is 1 when
    /// they do.
    Diff(TwoSnapshots),
}

#[derive(Debug, Args)]
pub(super) struct OneSnapshot {
    /// A snapshot's id, or its directory.
    #[arg(value_name = "ID|DIR")]
    snapshot: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct TwoSnapshots {
    /// A snapshot's id, or its directory.
    #[arg(value_name = "ID|DIR")]
    one: String,
    /// Another's.
    #[arg(value_name = "ID|DIR")]
    other: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Where the agent keeps what it has: its snapshots are found here by their ids.
    #[arg(long, default_value = "/var/lib/snapback", env = "SNAPBACK_STATE_DIR")]
    state_dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &SnapshotCommand) -> anyhow::Result<ExitCode> {
    match command {
        SnapshotCommand::Inspect(arguments) => {
            let files = arguments.common.open(&arguments.snapshot)?;
            inspect::run(&files, arguments.common.json)
        }
        SnapshotCommand::Verify(arguments) => {
            let opened = arguments.common.open(&arguments.snapshot);
            verify::run(opened, arguments.common.json)
        }
        SnapshotCommand::Diff(arguments) => {
            let one = arguments.common.open(&arguments.one)?;
            let other = arguments.common.open(&arguments.other)?;
            compare::run(&one, &other, arguments.common.json)
        }
    }
}

impl Common {
    fn open(&self, snapshot: &str) -> anyhow::Result<SnapshotFiles> {
        let directory = self.directory(snapshot)?;
        SnapshotFiles::open(&directory).map_err(anyhow::Error::from)
    }

    /// The directory of a snapshot: itself, or the one of an id.
    fn directory(&self, snapshot: &str) -> anyhow::Result<PathBuf> {
        let given = Path::new(snapshot);
        if given.is_dir() {
            return given
                .canonicalize()
                .with_context(|| format!("{snapshot} cannot be reached"));
        }
        let found = snapshot
            .parse::<SnapshotId>()
            .ok()
            .map(|id| self.state_dir.join("snapshots").join(id.as_str()))
            .filter(|directory| directory.is_dir());
        found.with_context(|| {
            format!(
                "there is no directory {snapshot}, and no snapshot of this id in {}: \
                 name the agent's state directory with --state-dir",
                self.state_dir.display()
            )
        })
    }
}

/// A number of bytes with a unit that fits.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && count >> (10 * (unit + 1)) > 0 {
        unit += 1;
    }
    let tenths = (count * 10) >> (10 * unit);
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_unit_that_fits() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (128 << 20, "128.0 MiB"),
            (16 << 30, "16.0 GiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
