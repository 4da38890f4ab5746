//! The command line.
//!
//! ```text
//!  snapback agent                        runs the node
//!  snapback function create|list|delete  ─┐ HTTP over the
//!  snapback invoke NAME --payload FILE   ─┘ agent's socket
//!  snapback snapshot inspect|verify|diff  looks at snapshots' directories
//!  snapback doctor [--json]              looks at the host
//! ```

mod agent;
mod client;
mod description;
mod doctor;
mod function;
mod invoke;
mod snapshot;
mod upload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::telemetry;

/// Runs untrusted functions in microVMs that are reset after every request.
#[derive(Debug, Parser)]
#[command(name = "snapback", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node's agent.
    Agent(agent::AgentArguments),
    /// Manage functions.
    #[command(subcommand)]
    Function(function::FunctionCommand),
    /// Run a function once and print its answer.
    Invoke(invoke::InvokeArguments),
    /// Look at snapshots on disk; needs no agent.
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Say whether this host can run microVMs, and what is missing.
    Doctor(doctor::DoctorArguments),
}

/// How to reach the agent.
#[derive(Debug, Args)]
struct Connection {
    /// The agent's socket.
    #[arg(
        long,
        default_value = "/run/snapback/api.sock",
        env = "SNAPBACK_SOCKET"
    )]
    socket: PathBuf,
}

/// Parses the arguments, does what they say, and tells the exit status: 0, 1 for
/// a failure (a function's error included), 2 for wrong arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Agent(arguments) => agent::run(&arguments),
        Command::Function(command) => in_runtime(function::run(command)),
        Command::Invoke(arguments) => in_runtime(invoke::run(arguments)),
        Command::Snapshot(command) => snapshot::run(&command),
        Command::Doctor(arguments) => doctor::run(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("snapback: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs a client command.
fn in_runtime(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    telemetry::init();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
