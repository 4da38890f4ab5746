//! The box: an emulated bare-metal host with a real `/dev/kvm`, in which a command runs on
//! the host's own file tree. Used wherever the host has no usable KVM.
//!
//! What the job writes is lost, except below a shared directory.

mod console;
mod initramfs;
mod kernel_image;
mod processor;
mod qemu;
mod scripts;

use std::fs;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};

pub use qemu::Clock;

use crate::cache::Cache;
use crate::execution::{Limits, OnOutput, Outcome, follow};
use crate::job::Job;
use crate::process::last_lines;
use console::Ports;
use kernel_image::KernelImage;
use processor::Processor;
use qemu::Machine;

/// How long the box may take until it starts the job.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Lines of the kernel's console that are shown when the box fails.
const CONSOLE_LINES: usize = 60;

/// The machine to run a job on, and for how long at most.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How time passes.
    pub clock: Clock,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// The job is killed after this time.
    pub timeout: Duration,
}

/// Runs `job` in a fresh box; calls `on_output` with what it writes, as it writes it.
pub fn run(
    cache: &Cache,
    settings: &Settings,
    job: &Job,
    on_output: OnOutput<'_>,
) -> Result<Outcome> {
    let kernel = KernelImage::fetch(cache)?;
    let initramfs = initramfs::make(cache, &kernel)?;

    let dir = tempfile::Builder::new()
        .prefix("snapback-box-")
        .tempdir()
        .context("cannot create a temporary directory for the box")?;
    let write = |name: &str, content: String| {
        let path = dir.path().join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        anyhow::Ok(path)
    };
    let script = write("job", scripts::run(job)?)?;
    let mounts = write(
        "mounts",
        scripts::mounts(job, &kernel.modules(), kernel.release())?,
    )?;
    let console_log = dir.path().join("console");
    let qemu_log = dir.path().join("qemu");
    let ports = Ports::listen(dir.path())?;
    let processor = Processor::take(cache)?;
    let machine = Machine {
        clock: settings.clock,
        processor: processor.number(),
        memory_mib: settings.memory_mib,
        kernel: &kernel,
        initramfs: &initramfs,
        ports: &ports,
        console_log: &console_log,
        job: &script,
        mounts: &mounts,
        shares: &job.shares,
    };
    let mut command = machine.command();
    command.stderr(
        fs::File::create(&qemu_log)
            .map(Stdio::from)
            .with_context(|| format!("cannot create {}", qemu_log.display()))?,
    );
    let (sender, events) = mpsc::channel();
    ports.read_into(&sender);
    let mut qemu = Running(
        command
            .spawn()
            .context("cannot start qemu-system-x86_64 through setpriv")?,
    );
    let limits = Limits {
        start: BOOT_LIMIT,
        run: settings.timeout,
    };
    let outcome = follow(&events, limits, on_output, || {
        let status = qemu.0.try_wait().context("cannot wait for QEMU")?;
        Ok(status.map(|status| format!("QEMU ended before the command started: {status}")))
    })?;
    drop(qemu);
    Ok(match outcome {
        Outcome::Died(why) => {
            let said = [&qemu_log, &console_log]
                .map(|path| {
                    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
                })
                .concat();
            Outcome::Died(format!(
                "the box: {why}; the last lines of its console:\n{}",
                last_lines(&said, CONSOLE_LINES)
            ))
        }
        other => other,
    })
}

/// A machine that is killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
