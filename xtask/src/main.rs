//! The developer's commands: `cargo xtask …`.

mod assets;
mod boto3;
mod cache;
mod cli;
mod cpio;
mod examples;
mod execution;
mod host_box;
mod initramfs;
mod job;
mod kernel;
mod measure;
mod native;
mod packages;
mod peers;
mod pip;
mod place;
mod process;
mod progress;
mod rootfs;
mod shell;
mod static_program;
mod test;
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
