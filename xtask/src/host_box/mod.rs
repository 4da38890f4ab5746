//! The box: an emulated bare-metal host with a real `/dev/kvm`, in which a command runs on
//! the host's own file tree. Used wherever the host has no usable KVM.
//!
//! What the job writes is lost, except below a shared directory.

mod console;
mod initramfs;
mod job;
mod kernel_image;
mod qemu;

use std::fs;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub use console::Stream;
pub use job::Job;
pub use qemu::Clock;

use crate::cache::Cache;
use crate::process::last_lines;
use console::{Event, Ports};
use kernel_image::KernelImage;
use qemu::Machine;

/// How long the output must be silent, after the job's end, to be complete. The job's pipes
/// are known to be empty by then; what may be under way is in QEMU's buffers.
const QUIET: Duration = Duration::from_millis(50);

/// How long the box may take until it starts the job.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Lines of the kernel's console that are shown when the box fails.
const CONSOLE_LINES: usize = 30;

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

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this status (128 + the signal's number if a signal ended it).
    Exited(u8),
    /// It ran longer than it may.
    TimedOut(Duration),
    /// The user pressed Ctrl-C.
    Interrupted,
    /// The box did not get as far, or died under the job; with what is known about it.
    Died(String),
}

impl Outcome {
    /// The status that a shell would report.
    pub fn code(&self) -> u8 {
        match self {
            Self::Exited(code) => *code,
            Self::TimedOut(_) => 124,
            Self::Died(_) => 125,
            Self::Interrupted => 130,
        }
    }

    /// What went wrong with the run itself, in words; nothing if the job simply ended.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Exited(_) => None,
            Self::TimedOut(limit) => Some(format!(
                "the job ran longer than {} s and was killed (raise --timeout?)",
                limit.as_secs()
            )),
            Self::Interrupted => Some("interrupted".to_owned()),
            Self::Died(why) => Some(why.clone()),
        }
    }
}

/// Fetches and makes what the box needs, without running anything.
pub fn prepare(cache: &Cache) -> Result<()> {
    let kernel = KernelImage::fetch(cache)?;
    initramfs::make(cache, &kernel)?;
    Ok(())
}

/// Runs `job` in a fresh box; calls `on_output` with what it writes, as it writes it.
pub fn run(
    cache: &Cache,
    settings: &Settings,
    job: &Job,
    on_output: &mut dyn FnMut(Stream, &[u8]) -> Result<()>,
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
    let script = write("job", job.script()?)?;
    let mounts = write("mounts", job.mounts(&kernel.modules(), kernel.release())?)?;
    let console_log = dir.path().join("console");
    let qemu_log = dir.path().join("qemu");
    let ports = Ports::listen(dir.path())?;
    let machine = Machine {
        clock: settings.clock,
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
    let interrupted = interrupt_flag()?;
    let (sender, events) = mpsc::channel();
    ports.read_into(&sender);
    let mut qemu = Running(
        command
            .spawn()
            .context("cannot start qemu-system-x86_64 through setpriv")?,
    );
    let outcome = follow(&mut qemu, &events, settings.timeout, &interrupted, on_output)?;
    drop(qemu);
    Ok(match outcome {
        Outcome::Died(why) => {
            let said = [&qemu_log, &console_log]
                .map(|path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned())
                .concat();
            Outcome::Died(format!(
                "{why}; the last lines of its console:\n{}",
                last_lines(&said, CONSOLE_LINES)
            ))
        }
        other => other,
    })
}

/// Passes output on until the job ends, one way or another.
fn follow(
    qemu: &mut Running,
    events: &Receiver<Event>,
    timeout: Duration,
    interrupted: &AtomicBool,
    on_output: &mut dyn FnMut(Stream, &[u8]) -> Result<()>,
) -> Result<Outcome> {
    let mut started = None;
    let begun = Instant::now();
    loop {
        match events.recv_timeout(Duration::from_millis(100)) {
            Ok(Event::Output(stream, bytes)) => on_output(stream, &bytes)?,
            Ok(Event::Started) => started = Some(Instant::now()),
            Ok(Event::Exited(code)) => {
                while let Ok(event) = events.recv_timeout(QUIET) {
                    if let Event::Output(stream, bytes) = event {
                        on_output(stream, &bytes)?;
                    }
                }
                return Ok(Outcome::Exited(code));
            }
            Ok(Event::Failed(why)) => {
                return Ok(Outcome::Died(format!("the box failed: {why}")));
            }
            Ok(Event::Closed) | Err(RecvTimeoutError::Disconnected) => {
                return Ok(Outcome::Died("the box went down under the job".to_owned()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if interrupted.load(Ordering::Relaxed) {
            return Ok(Outcome::Interrupted);
        }
        match started {
            Some(started) if started.elapsed() > timeout => {
                return Ok(Outcome::TimedOut(timeout));
            }
            None if begun.elapsed() > BOOT_LIMIT => {
                return Ok(Outcome::Died(format!(
                    "the box did not start the job within {} s",
                    BOOT_LIMIT.as_secs()
                )));
            }
            _ => {}
        }
        if let Some(status) = qemu.0.try_wait().context("cannot wait for QEMU")?
            && started.is_none()
        {
            return Ok(Outcome::Died(format!("QEMU ended early: {status}")));
        }
    }
}

/// A flag that Ctrl-C, or a request to terminate, sets.
fn interrupt_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, Arc::clone(&flag))
            .context("cannot install a handler for Ctrl-C")?;
    }
    Ok(flag)
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
