//! The `snapback` program: agent and command line in one.

use std::process::ExitCode;

fn main() -> ExitCode {
    snapback::cli::main()
}
