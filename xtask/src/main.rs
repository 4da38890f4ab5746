//! The developer's commands: `cargo xtask …`.

mod cache;
mod cli;
mod cpio;
mod host_box;
mod kernel;
mod packages;
mod process;
mod progress;
mod rootfs;
mod shell;
mod workspace;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
