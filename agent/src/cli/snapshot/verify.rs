//! `snapback snapshot verify`.

use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;
use snapback_proto::words::chain;

use crate::snapshots::SnapshotFiles;

/// The outcome, as `--json` prints it.
#[derive(Default, Serialize)]
struct Verified {
    ok: bool,
    /// What is wrong, with the section or chunk that is to blame.
    damage: Vec<String>,
}

pub(super) fn run(opened: anyhow::Result<SnapshotFiles>, json: bool) -> anyhow::Result<ExitCode> {
    let damage = match &opened {
        Err(error) => vec![chain(error.as_ref())],
        // Both, so that one damaged part does not hide the other.
        Ok(files) => [files.state().map(drop), files.check_memory().map(drop)]
            .into_iter()
            .filter_map(|checked| checked.err().map(|error| chain(&error)))
            .collect(),
    };
    let verified = Verified {
        ok: damage.is_empty(),
        damage,
    };
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&verified)?)?;
    } else if let (Ok(files), true) = (&opened, verified.ok) {
        let id = &files.manifest().snapshot_id;
        let pages = files.memory().len() / crate::pager::PAGE;
        let bases = files.bases().len();
        writeln!(
            out,
            "snapshot {id} is whole: state, and {pages} pages of memory over {bases} bases"
        )?;
    }
    for damage in &verified.damage {
        eprintln!("snapback: {damage}");
    }
    if verified.ok {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("snapback: restore it from a copy, or create its function again");
    Ok(ExitCode::FAILURE)
}
