//! The command line of the measurements.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use snapback_bench::demo::{self, EACH};
use snapback_bench::report::Report;

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
    }
}

fn show(arguments: DemoArguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let report = runtime.block_on(demo::run(&demo::Options {
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
