//! `snapback snapshot inspect`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;

use serde::Serialize;
use snapback_vmm::snapshot::manifest::{MEMORY_FILE_NAME, SnapshotId};
use snapback_vmm::snapshot::{Digest, StateReader};
use snapback_vmm::sys::memfd;

use super::bytes;
use crate::pager::PAGE;
use crate::snapshots::SnapshotFiles;

/// What a snapshot is, as `--json` prints it.
#[derive(Serialize)]
struct Inspected<'a> {
    #[serde(flatten)]
    identity: Identity<'a>,
    sections: Vec<Section>,
    memory: MemoryFacts,
    bases: &'a [SnapshotId],
}

/// The manifest's words.
#[derive(Serialize)]
struct Identity<'a> {
    snapshot_id: &'a SnapshotId,
    format_version: u32,
    created_unix_ms: u64,
    function: &'a str,
    memory_mib: u32,
    vcpus: u8,
    template: &'static str,
    vendor: &'a str,
    features: &'a [String],
    kernel: Digest,
    root_fs: Digest,
    code: Digest,
    guest_init: Digest,
}

/// A section of the state file.
#[derive(Serialize)]
struct Section {
    name: &'static str,
    index: u16,
    version: u16,
    /// In bytes.
    len: u32,
    hash: Digest,
}

/// The snapshot's own memory file.
#[derive(Serialize)]
struct MemoryFacts {
    /// Pages of the machine.
    pages: u64,
    /// Pages that this file has.
    stored: u64,
    /// Pages that this file says are zero; in a whole one, all that are not stored.
    zero: u64,
    /// Pages that a base has.
    inherited: u64,
    /// What it takes on disk, in bytes.
    on_disk: u64,
}

pub(super) fn run(files: &SnapshotFiles, json: bool) -> anyhow::Result<ExitCode> {
    let manifest = files.manifest();
    let state = StateReader::open(File::open(files.state_path())?)?;
    let inspected = Inspected {
        identity: Identity {
            snapshot_id: &manifest.snapshot_id,
            format_version: manifest.format_version,
            created_unix_ms: manifest.created_unix_ms,
            function: manifest.function.as_str(),
            memory_mib: manifest.machine.memory_mib,
            vcpus: manifest.machine.vcpus,
            template: manifest.machine.template.name(),
            vendor: &manifest.cpu.vendor,
            features: &manifest.cpu.features,
            kernel: manifest.kernel,
            root_fs: manifest.root_fs,
            code: manifest.code,
            guest_init: manifest.guest_init,
        },
        sections: state
            .list()
            .map(|section| Section {
                name: section.kind.name(),
                index: section.index,
                version: section.version,
                len: section.len,
                hash: section.hash,
            })
            .collect(),
        memory: memory_facts(files)?,
        bases: files.bases(),
    };
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&inspected)?)?;
    } else {
        in_words(&inspected, &mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn memory_facts(files: &SnapshotFiles) -> anyhow::Result<MemoryFacts> {
    let path = files.directory().join(MEMORY_FILE_NAME);
    let file = File::open(&path)?;
    let len = files.memory().len();
    let (mut stored, mut at) = (0, 0);
    while let Some(data) = memfd::data_after(&file, at, len)? {
        stored += data.end.div_ceil(PAGE) - data.start / PAGE;
        at = data.end;
    }
    let pages = len / PAGE;
    let own = files.map().map_or(pages, |map| map.pages());
    Ok(MemoryFacts {
        pages,
        stored,
        zero: own.saturating_sub(stored),
        inherited: pages - own,
        on_disk: fs::metadata(&path)?.blocks() * 512,
    })
}

fn in_words(inspected: &Inspected<'_>, out: &mut impl Write) -> io::Result<()> {
    let Identity {
        snapshot_id,
        format_version,
        created_unix_ms,
        function,
        memory_mib,
        vcpus,
        template,
        vendor,
        features,
        ..
    } = &inspected.identity;
    writeln!(out, "snapshot   {snapshot_id} (format {format_version})")?;
    writeln!(out, "function   {function}")?;
    writeln!(out, "created    {created_unix_ms} ms after 1970-01-01 UTC")?;
    writeln!(out, "machine    {memory_mib} MiB, {vcpus} vCPU")?;
    writeln!(out, "processor  {template} of {vendor}")?;
    writeln!(out, "features   {}", features.join(" "))?;
    for (name, hash) in [
        ("kernel", inspected.identity.kernel),
        ("root", inspected.identity.root_fs),
        ("code", inspected.identity.code),
        ("init", inspected.identity.guest_init),
    ] {
        writeln!(out, "{name:<10} {hash}")?;
    }
    writeln!(out, "state")?;
    for Section {
        name,
        index,
        version,
        len,
        hash,
    } in &inspected.sections
    {
        let name = format!("{name} {index}");
        writeln!(out, "  {name:<14} version {version}  {len:>8} B  {hash}")?;
    }
    let MemoryFacts {
        pages,
        stored,
        zero,
        inherited,
        on_disk,
    } = inspected.memory;
    let on_disk = bytes(on_disk);
    writeln!(
        out,
        "memory     {pages} pages: {stored} stored, {zero} zero, {inherited} of a base; {on_disk} on disk"
    )?;
    for base in inspected.bases {
        writeln!(out, "base       {base}")?;
    }
    Ok(())
}
