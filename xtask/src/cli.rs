//! The command line, and which module answers which command.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::assets;
use crate::cache::Cache;
use crate::examples;
use crate::execution;
use crate::host_box::{Clock, Settings};
use crate::job::Job;
use crate::kernel::{self, Kernel};
use crate::measure::{self, Benchmark, Files};
use crate::packages;
use crate::place::Place;
use crate::rootfs;
use crate::test;

/// The developer's commands of Snapback.
#[derive(Parser)]
#[command(name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a command on an emulated bare-metal host with a real /dev/kvm.
    Box(BoxArgs),
    /// Build the guest's kernel and say where it is.
    Kernel,
    /// Make a function's root file system image and say where it is.
    Rootfs {
        /// The recipe: `rootfs/NAME.toml`.
        name: String,
    },
    /// Make all that the agent needs beside its binaries: `target/assets`.
    Assets {
        /// Take the newest Debian packages, not the ones that were found before.
        #[arg(long)]
        refresh: bool,
    },
    /// Complete the functions of `examples/` and say where they are: `target/examples`.
    Examples,
    /// Check everything: format, lints, unit tests, integration tests.
    Test {
        /// Only integration tests whose name contains this, and nothing else.
        filter: Option<String>,
        /// Kill the integration tests when all together have run this long.
        #[arg(long, value_name = "S", default_value_t = 2400)]
        timeout: u64,
    },
    /// Show a real function being snapshotted, restored and reset.
    Demo {
        /// Write the results to this file too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// If it runs in the box: with the instruction-counting clock.
        #[arg(long)]
        counted: bool,
    },
    /// Measure something, beside the floor and other programs that do the same.
    Bench {
        /// What.
        name: Benchmark,
        /// Write the results to this file too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Draw the medians into this file, as SVG.
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
        /// Only see whether everything works: few samples, one request at a time.
        #[arg(long)]
        quick: bool,
        /// If it runs in the box: without the instruction-counting clock. Times mean
        /// nothing then.
        #[arg(long)]
        fast: bool,
    },
}

#[derive(Args)]
struct BoxArgs {
    /// One instruction is one virtual nanosecond. For measuring.
    #[arg(long)]
    counted: bool,
    /// The box's memory.
    #[arg(long, value_name = "MiB", default_value_t = 4096)]
    memory: u32,
    /// Kill the command when it has run this long.
    #[arg(long, value_name = "S", default_value_t = 1800)]
    timeout: u64,
    /// A directory that is writable in the box, at the same path; repeatable. Everything
    /// else that the command writes is lost.
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Does what the command line asks; the result is the exit status.
pub fn run() -> Result<u8> {
    match Cli::parse().command {
        Command::Box(args) => run_box(args),
        Command::Kernel => made(|cache| kernel::make(cache, Kernel::Guest)),
        Command::Rootfs { name } => made(|cache| rootfs::make(cache, &name)),
        Command::Assets { refresh } => made(|cache| {
            if refresh {
                cache.forget_resolutions()?;
            }
            assets::make(cache)
        }),
        Command::Examples => made(examples::make),
        Command::Test { filter, timeout } => Ok(test::run(&test::Options {
            filter,
            limit: Duration::from_secs(timeout),
        })),
        Command::Demo { json, counted } => measure::demo(json, clock(counted)),
        Command::Bench {
            name,
            json,
            plot,
            quick,
            fast,
        } => measure::bench(name, quick, &Files { json, plot }, clock(!fast)),
    }
}

fn run_box(args: BoxArgs) -> Result<u8> {
    packages::ensure()?;
    let cache = Cache::open()?;
    let mut job = Job::new(args.command)?;
    for share in args.share {
        job.shares.push(
            share
                .canonicalize()
                .with_context(|| format!("the shared directory {} must exist", share.display()))?,
        );
    }
    let settings = Settings {
        clock: clock(args.counted),
        memory_mib: args.memory,
        timeout: Duration::from_secs(args.timeout),
    };
    let outcome = Place::Box.run(&cache, &settings, job, &mut execution::pass_on)?;
    if let Some(trouble) = outcome.trouble() {
        eprintln!("error: {trouble}");
    }
    Ok(outcome.code())
}

/// Makes one thing and prints its path.
fn made(make: impl FnOnce(&Cache) -> Result<PathBuf>) -> Result<u8> {
    packages::ensure()?;
    println!("{}", make(&Cache::open()?)?.display());
    Ok(0)
}

fn clock(counted: bool) -> Clock {
    if counted { Clock::Counted } else { Clock::Fast }
}
