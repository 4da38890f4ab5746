//! Writes snapshots into a catalogue until it is killed, and says when each one begins
//! and when it is there. For `tests/killed_writer.rs`.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use snapback::snapshots::{Catalogue, Disks, Parts};
use snapback_vmm::snapshot::Digest;
use snapback_vmm::snapshot::manifest::{Machine, SnapshotId};
use snapback_vmm::supervisor::Saved;
use snapback_vmm::sys::memfd;

const PAGE: u64 = 4096;
/// Pages of a snapshot that are not zero: enough to take a while.
const PAGES: u64 = 600;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let mut next = || arguments.next().context("write_snapshots CATALOGUE STATE");
    let (directory, state) = (next()?, next()?);
    let catalogue = Catalogue::open(directory, PAGE)?;
    let machine = Saved::load(&File::open(&state)?)?.machine;
    let image = (state.clone(), Digest::of(b"image"));
    let parts = Parts {
        function: "f".parse()?,
        machine: Machine {
            memory_mib: machine.memory_mib,
            vcpus: machine.vcpus,
            template: machine.template,
        },
        kernel: Digest::of(b"kernel"),
        guest_init: Digest::of(b"init"),
        disks: Disks {
            root_fs: image.clone(),
            code: image,
        },
        gathered: false,
    };
    let len = u64::from(machine.memory_mib) << 20;
    let mut out = std::io::stdout();
    for number in 0_u64.. {
        let id: SnapshotId = format!("s-{number}").parse()?;
        writeln!(out, "begin {id}")?;
        // Every other one is a diff of the one before.
        let base = (number % 2 == 1).then(|| format!("s-{}", number - 1));
        let base = base.map(|base| base.parse::<SnapshotId>()).transpose()?;
        let draft = catalogue.draft(id.clone(), base.as_ref())?;
        std::io::copy(&mut File::open(&state)?, &mut draft.state_file()?)?;
        let memory = memfd::create("guest", len)?;
        for page in 0..PAGES {
            let bytes = (page ^ number << 20).to_le_bytes().repeat(512);
            rustix::io::pwrite(&memory, &bytes, page * 2 * PAGE)?;
        }
        draft.commit(memory, len, &parts)?;
        writeln!(out, "done {id}")?;
    }
    Ok(())
}
