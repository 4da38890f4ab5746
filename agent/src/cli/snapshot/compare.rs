//! `snapback snapshot diff`.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::process::ExitCode;

use serde::Serialize;
use snapback_vmm::snapshot::layers::Layers;
use snapback_vmm::snapshot::manifest::SnapshotId;
use snapback_vmm::snapshot::{SectionInfo, StateReader, memory};

use super::bytes;
use crate::pager::PAGE;
use crate::snapshots::SnapshotFiles;

/// How two snapshots differ, as `--json` prints it.
#[derive(Serialize)]
struct Difference<'a> {
    one: &'a SnapshotId,
    other: &'a SnapshotId,
    sections: Vec<SectionDifference>,
    /// `None` when the machines' memories are of different sizes.
    memory: Option<MemoryDifference>,
}

/// A section of the state that differs.
#[derive(Serialize)]
struct SectionDifference {
    name: &'static str,
    index: u16,
    /// `version`, `content`, or in which of them it is: `only in one`, `only in other`.
    how: &'static str,
    /// Its lengths, in bytes; 0 where it is not.
    lens: [u32; 2],
}

/// The pages that differ.
#[derive(Serialize)]
struct MemoryDifference {
    pages: u64,
    of: u64,
    /// First page and number of pages.
    ranges: Vec<(u32, u32)>,
}

/// How many ranges are printed without `--json`.
const SHOWN: usize = 16;

pub(super) fn run(
    one: &SnapshotFiles,
    other: &SnapshotFiles,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let difference = Difference {
        one: &one.manifest().snapshot_id,
        other: &other.manifest().snapshot_id,
        sections: sections(&open_state(one)?, &open_state(other)?),
        memory: pages(one.memory(), other.memory())?,
    };
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&difference)?)?;
    } else {
        in_words(&difference, &mut out)?;
    }
    let same = difference.sections.is_empty()
        && difference
            .memory
            .is_some_and(|memory| memory.ranges.is_empty());
    Ok(if same {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn open_state(files: &SnapshotFiles) -> anyhow::Result<StateReader> {
    Ok(StateReader::open(File::open(files.state_path())?)?)
}

fn sections(one: &StateReader, other: &StateReader) -> Vec<SectionDifference> {
    let (one, other): (Vec<_>, Vec<_>) = (one.list().collect(), other.list().collect());
    let mut found = Vec::new();
    for ours in &one {
        let theirs = other.iter().find(|theirs| same_place(theirs, ours));
        let how = match theirs {
            None => "only in one",
            Some(theirs) if theirs.version != ours.version => "version",
            Some(theirs) if theirs.hash != ours.hash => "content",
            Some(_) => continue,
        };
        found.push(SectionDifference {
            name: ours.kind.name(),
            index: ours.index,
            how,
            lens: [ours.len, theirs.map_or(0, |theirs| theirs.len)],
        });
    }
    for theirs in &other {
        if !one.iter().any(|ours| same_place(ours, theirs)) {
            found.push(SectionDifference {
                name: theirs.kind.name(),
                index: theirs.index,
                how: "only in other",
                lens: [0, theirs.len],
            });
        }
    }
    found
}

fn same_place(one: &SectionInfo, other: &SectionInfo) -> bool {
    (one.kind, one.index) == (other.kind, other.index)
}

fn pages(one: &Layers, other: &Layers) -> anyhow::Result<Option<MemoryDifference>> {
    if one.len() != other.len() {
        return Ok(None);
    }
    let map = memory::differences(one, other)?;
    let range = |run: &Range<u32>| (run.start, run.end - run.start);
    Ok(Some(MemoryDifference {
        pages: map.pages(),
        of: one.len() / PAGE,
        ranges: map.runs().iter().map(range).collect(),
    }))
}

fn in_words(difference: &Difference<'_>, out: &mut impl Write) -> io::Result<()> {
    let Difference { one, other, .. } = difference;
    writeln!(out, "{one} and {other}")?;
    for SectionDifference {
        name,
        index,
        how,
        lens: [ours, theirs],
    } in &difference.sections
    {
        let name = format!("{name} {index}");
        writeln!(out, "  {name:<14} {how} ({ours} B, {theirs} B)")?;
    }
    let Some(memory) = &difference.memory else {
        return writeln!(out, "  memory         of different sizes");
    };
    let (pages, of, size) = (memory.pages, memory.of, bytes(memory.pages * PAGE));
    let ranges = memory.ranges.len();
    writeln!(
        out,
        "  memory         {pages} of {of} pages ({size}) in {ranges} ranges"
    )?;
    for (first, count) in memory.ranges.iter().take(SHOWN) {
        let address = u64::from(*first) * PAGE;
        writeln!(out, "    {count} pages from {address:#x}")?;
    }
    if ranges > SHOWN {
        writeln!(out, "    and {} more: --json has all", ranges - SHOWN)?;
    }
    Ok(())
}
