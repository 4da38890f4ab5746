//! The reset benchmark: what it costs to put a machine back, by the pages that a request
//! wrote and by the steps of a reset.
//!
//! ```text
//!  boot a guest that writes pages as told ─► snapshot ─► restore
//!   ├─ pages   requests of 0 to 20,000 pages, the same ones or others each time
//!   ├─ destroy the same requests, each in a machine that is restored for it
//!   ├─ loadvm  the same requests with QEMU's loadvm between them
//!   └─ served  a function that does nothing: requests per second with and without
//!
//!  the same guest, in a run of its own ([`endure`])
//!   └─ many    10,000 requests of one machine: memory, descriptors, complaints, equality
//! ```
//!
//! Of the many requests nothing is timed. So they need no host that counts instructions, where
//! they would take most of an hour, and their report is taken into that of the others.
//!
//! The machine has one vCPU, 128 MiB, a disk, a network and vsock. It is driven over
//! the VMM's control socket, as an agent does. What the pages cost that a kernel writes
//! by itself is in every figure: `reset/dirty_pages` says how many a request really had.

mod destroy;
mod many;
mod pages;
mod results;
mod served;
mod steps;
mod writer;

use std::path::PathBuf;

use snapback_proto::words::chain;

use crate::floor::{self, FloorError};
use crate::function::FunctionError;
use crate::machine::{Link, MEMORY_MIB, Machine, MachineError, Snapshot, prepare};
use crate::peers::{self, Guest, PeerError};
use crate::progress;
use crate::report::{Report, ReportError};

/// Pages that QEMU's guest writes, and how often for each.
const PEER_PAGES: [u32; 4] = [0, 50, 1000, 20_000];
const PEER_ROUNDS: u32 = 3;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel, guest-init and root file systems.
    pub assets: PathBuf,
    /// Where `snapback-vmm` is.
    pub bin_dir: PathBuf,
    /// Where the functions are that had to be built.
    pub functions: PathBuf,
    /// The packed PID 1 that writes pages.
    pub dirty_init: PathBuf,
    /// The report of [`endure`], to be part of this one.
    pub endured: Option<PathBuf>,
    /// Few samples.
    pub quick: bool,
}

/// The benchmark broke off.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// A machine could not be driven.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The floor could not be measured.
    #[error(transparent)]
    Floor(#[from] FloorError),
    /// A function is not there.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// A peer could not be measured.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The report of many requests cannot be read.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The guest does not do its part.
    #[error("the guest does not do its part: {0}")]
    Guest(String),
}

/// Measures everything and blocks meanwhile. The report has at least one failed check if
/// anything went wrong.
#[must_use]
pub fn run(options: &Options) -> Report {
    let mut report = Report::new("bench/reset");
    if let Err(error) = measure(options, &mut report) {
        report.check("reset/completed", false, chain(&error));
    }
    results::check(&mut report);
    report
}

/// Has one machine serve many requests and blocks meanwhile. The report has at least one
/// failed check if anything went wrong.
#[must_use]
pub fn endure(options: &Options) -> Report {
    let mut report = Report::new("bench/endure");
    let lived = prepared(options, |_, machine, _| {
        many::measure(&machine, options.quick, &mut report)
    });
    if let Err(error) = lived {
        report.check("reset/endured", false, chain(&error));
    }
    report
}

/// Boots the guest that writes pages, and restores it.
fn prepared(
    options: &Options,
    then: impl FnOnce(&Snapshot<'_>, Machine, &Link) -> Result<(), ResetError>,
) -> Result<(), ResetError> {
    progress::step("boot a guest that writes pages, and snapshot it");
    let link = Link::make()?;
    let vmm = options.bin_dir.join("snapback-vmm");
    let software = writer::software(&vmm, &options.assets, &options.dirty_init);
    let snapshot = writer::snapshot(&software, &link)?;
    let machine = snapshot.restore(snapshot.blank()?)?;
    then(&snapshot, machine, &link)
}

fn measure(options: &Options, report: &mut Report) -> Result<(), ResetError> {
    progress::step("measure the floor");
    report.floor.extend(floor::page_copy()?);
    report.floor.extend(floor::guest()?);
    if let Some(path) = &options.endured {
        let endured = Report::read(path)?;
        report.rows.extend(endured.rows);
        report.checks.extend(endured.checks);
    }
    prepared(options, |snapshot, machine, link| {
        pages::measure(&machine, options.quick, report)?;
        drop(machine);
        destroy::measure(snapshot, options.quick, report)?;
        served::measure(options, link, report)
    })?;
    progress::step("put the same guest back with QEMU's loadvm");
    let scratch = tempfile::tempdir_in("/run").map_err(prepare("make a directory in /run"))?;
    let guest = Guest {
        kernel: options.assets.join("vmlinux"),
        initramfs: options.dirty_init.clone(),
        root: options.assets.join("rootfs/python.erofs"),
        // The guest has no use for a second disk.
        code: options.assets.join("rootfs/python.erofs"),
        memory_mib: MEMORY_MIB,
        scratch: scratch.path().to_owned(),
    };
    let rounds = if options.quick { 1 } else { PEER_ROUNDS };
    report
        .peers
        .push(peers::loadvm(&guest, &PEER_PAGES, rounds)?);
    Ok(())
}

/// Adds a check that the machine equals its snapshot.
fn compare(machine: &Machine, what: &str, report: &mut Report) -> Result<(), ResetError> {
    let differences = machine.differences()?;
    let found = match differences.is_empty() {
        true => "nothing differs".to_owned(),
        false => differences.join("; "),
    };
    report.check(
        "reset/equal",
        differences.is_empty(),
        format!("{what}: {found}"),
    );
    Ok(())
}
