//! The command line, and which module answers which command.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::cache::Cache;
use crate::host_box::{self, Clock, Job, Settings, Stream};
use crate::kernel;
use crate::packages;
use crate::rootfs;

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
}

#[derive(Args)]
struct BoxArgs {
    /// One instruction is one virtual nanosecond; one processor. For measuring.
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
        Command::Kernel => made(|cache| kernel::make(cache)),
        Command::Rootfs { name } => made(|cache| rootfs::make(cache, &name)),
    }
}

fn run_box(args: BoxArgs) -> Result<u8> {
    packages::ensure()?;
    let cache = Cache::open()?;
    let mut job = Job::new(args.command)?;
    job.visible.push(cache.root().to_owned());
    for share in args.share {
        job.shares.push(share.canonicalize().with_context(|| {
            format!("the shared directory {} must exist", share.display())
        })?);
    }
    let settings = Settings {
        clock: if args.counted { Clock::Counted } else { Clock::Fast },
        memory_mib: args.memory,
        timeout: Duration::from_secs(args.timeout),
    };
    let outcome = host_box::run(&cache, &settings, &job, &mut pass_on)?;
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

/// Copies a job's output to this process's.
fn pass_on(stream: Stream, bytes: &[u8]) -> Result<()> {
    match stream {
        Stream::Out => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        }
        Stream::Err => std::io::stderr().lock().write_all(bytes),
    }
    .context("cannot pass the job's output on")
}
