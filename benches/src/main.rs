//! The command line of the measurements.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use snapback_bench::demo::{self, EACH};
use snapback_bench::invoke;
use snapback_bench::peers::Programs;
use snapback_bench::report::Report;
use snapback_bench::{reset, restore};

/// Measurements of Snapback.
#[derive(Debug, Parser)]
#[command(name = "snapback-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a real function that is snapshotted, restored and reset after each request.
    Demo(DemoArguments),
    /// Measure how long a request waits for a microVM that does not exist.
    Restore(RestoreArguments),
    /// Measure what it costs to put a microVM back to its snapshot.
    Reset(ResetArguments),
    /// Have one microVM serve 10,000 requests, and see whether it grows or differs.
    Endure(ResetArguments),
    /// Measure what a request costs whose microVM is there.
    Invoke(Measurement),
}

#[derive(Debug, Args)]
struct RestoreArguments {
    #[command(flatten)]
    measurement: Measurement,
    /// The initramfs of the guest that other VMMs restore; without it there are none.
    #[arg(long, value_name = "FILE")]
    peer_init: Option<PathBuf>,
    /// Firecracker's program, to be measured as a peer.
    #[arg(long, value_name = "FILE")]
    firecracker: Option<PathBuf>,
    /// Cloud Hypervisor's program, to be measured as a peer.
    #[arg(long, value_name = "FILE", requires = "pci_kernel")]
    cloud_hypervisor: Option<PathBuf>,
    /// The kernel of its guest: the peers' one with virtio over PCI.
    #[arg(long, value_name = "FILE")]
    pci_kernel: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ResetArguments {
    #[command(flatten)]
    measurement: Measurement,
    /// The initramfs of the guest that writes pages.
    #[arg(long, value_name = "FILE")]
    dirty_init: PathBuf,
    /// A report of `endure` that is to be part of the report of `reset`.
    #[arg(long, value_name = "FILE")]
    endured: Option<PathBuf>,
}

/// What every benchmark is told.
#[derive(Debug, Args)]
struct Measurement {
    /// Kernel, guest-init and root file systems (`cargo xtask assets` makes them).
    #[arg(long, value_name = "DIR")]
    assets: PathBuf,
    /// Where `snapback` and `snapback-vmm` are.
    #[arg(long, value_name = "DIR")]
    bin_dir: PathBuf,
    /// The functions that had to be built, each in a folder of its name.
    #[arg(long, value_name = "DIR")]
    functions: PathBuf,
    /// Fewer samples, and one request at a time: to see whether it works.
    #[arg(long)]
    quick: bool,
    /// Write the report to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the medians into this file, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct DemoArguments {
    /// Kernel, guest-init and root file systems (`cargo xtask assets` makes them).
    #[arg(long, value_name = "DIR")]
    assets: PathBuf,
    /// Where `snapback` and `snapback-vmm` are.
    #[arg(long, value_name = "DIR")]
    bin_dir: PathBuf,
    /// Write the report to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many requests are sent.
    #[arg(long, value_name = "N", default_value_t = 20)]
    requests: usize,
    /// The function's folder [default: examples/word-report of the source tree].
    #[arg(long, value_name = "DIR")]
    function: Option<PathBuf>,
    /// Folders with documents to send, instead of Debian's licences and the source
    /// tree's own.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    documents: Vec<PathBuf>,
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Demo(arguments) => show(arguments),
        Command::Restore(arguments) => measure_restore(arguments),
        Command::Reset(arguments) => measure_reset(arguments, reset::run),
        Command::Endure(arguments) => measure_reset(arguments, reset::endure),
        Command::Invoke(common) => measure_invoke(common),
    }
}

fn measure_restore(arguments: RestoreArguments) -> Result<ExitCode> {
    let common = arguments.measurement;
    let report = runtime()?.block_on(restore::run(&restore::Options {
        assets: common.assets,
        bin_dir: common.bin_dir,
        functions: common.functions,
        peer_init: arguments.peer_init,
        peers: Programs {
            firecracker: arguments.firecracker,
            cloud_hypervisor: arguments.cloud_hypervisor.zip(arguments.pci_kernel),
        },
        quick: common.quick,
    }));
    present(&report, common.plot, common.json)
}

fn measure_reset(
    arguments: ResetArguments,
    measure: fn(&reset::Options) -> Report,
) -> Result<ExitCode> {
    let common = arguments.measurement;
    let report = measure(&reset::Options {
        assets: common.assets,
        bin_dir: common.bin_dir,
        functions: common.functions,
        dirty_init: arguments.dirty_init,
        endured: arguments.endured,
        quick: common.quick,
    });
    present(&report, common.plot, common.json)
}

fn measure_invoke(common: Measurement) -> Result<ExitCode> {
    let report = runtime()?.block_on(invoke::run(&invoke::Options {
        assets: common.assets,
        bin_dir: common.bin_dir,
        functions: common.functions,
        quick: common.quick,
    }));
    present(&report, common.plot, common.json)
}

/// As [`finish`], with a picture.
fn present(report: &Report, plot: Option<PathBuf>, json: Option<PathBuf>) -> Result<ExitCode> {
    if let Some(path) = plot {
        report.plot(&path)?;
    }
    finish(report, json)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")
}

fn show(arguments: DemoArguments) -> Result<ExitCode> {
    let report = runtime()?.block_on(demo::run(&demo::Options {
        assets: arguments.assets,
        bin_dir: arguments.bin_dir,
        function: arguments.function,
        documents: arguments.documents,
        requests: arguments.requests,
    }));
    finish(&report, arguments.json)
}

/// Prints a report and writes it where it is wanted; the result is the exit status.
fn finish(report: &Report, json: Option<PathBuf>) -> Result<ExitCode> {
    print!("\n{}", report.text(&[EACH]));
    if let Some(path) = json {
        report.write(&path)?;
    }
    Ok(match report.ok() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
