//! A VMM process that is driven directly over its control socket, without an agent:
//! what a benchmark of the VMM alone needs of the agent, step by step.
//!
//! ```text
//!  Vmm::start ─► boot ─► Snapshot ─► restore (in another process) ─► run ─► reset ─► …
//! ```

mod console;
mod link;
mod vmm;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use snapback_proto::CHANNEL_PORT;
use snapback_proto::control::{Command, Devices, Net, Reply, ResetReport, Run};
use snapback_vmm::sys::memfd;

pub use console::Console;
pub use link::Link;
pub use vmm::Vmm;

/// Memory of every machine, in MiB.
pub const MEMORY_MIB: u32 = 128;
/// How long a guest may be silent, and a VMM without an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The guest's address on its link.
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x2a];
/// As the agent's, but with warnings shown: what a guest's kernel complains about.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=5 reboot=k panic=-1 pci=off \
     random.trust_cpu=on tsc=reliable";

/// How a guest is let go.
const RUN: Run = Run {
    hub: false,
    barrier: false,
};

/// A machine could not be driven.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A file, a device or a program is missing or refused.
    #[error("cannot {doing}")]
    Prepare {
        /// What was tried.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The VMM process does not answer.
    #[error("the VMM does not answer {command}")]
    Silent {
        /// What it was asked.
        command: &'static str,
        /// What the socket says.
        #[source]
        source: snapback_proto::control::ControlError,
    },
    /// The VMM answered something else.
    #[error("the VMM answered {command} with {answer}")]
    Refused {
        /// What it was asked.
        command: &'static str,
        /// What it said.
        answer: String,
    },
}

pub(crate) fn prepare(doing: impl Into<String>) -> impl FnOnce(io::Error) -> MachineError {
    let doing = doing.into();
    move |source| MachineError::Prepare { doing, source }
}

fn is_running(reply: &Reply) -> bool {
    matches!(reply, Reply::Running { .. })
}

/// What a machine runs.
#[derive(Debug, Clone)]
pub struct Software {
    /// The VMM.
    pub vmm: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// PID 1, packed.
    pub initramfs: PathBuf,
    /// Read-only disks, in order.
    pub disks: Vec<PathBuf>,
}

/// A snapshot of a machine with block devices, a network and vsock.
#[derive(Debug)]
pub struct Snapshot<'a> {
    software: &'a Software,
    link: &'a Link,
    memory: OwnedFd,
    state: File,
}

fn open(path: &Path) -> Result<File, MachineError> {
    File::open(path).map_err(prepare(format!("open {}", path.display())))
}

fn devices(software: &Software) -> Devices {
    let mut devices = Devices::read_only_disks(software.disks.len());
    devices.net = Some(Net { mac: MAC });
    devices
}

/// A fresh invocation channel: the host's end, and the one that goes to the VMM.
fn channel() -> Result<(UnixStream, OwnedFd), MachineError> {
    let made = UnixStream::pair().and_then(|(ours, theirs)| {
        ours.set_read_timeout(Some(PATIENCE))?;
        Ok((ours, theirs.into()))
    });
    made.map_err(prepare("make a channel"))
}

impl<'a> Snapshot<'a> {
    /// Boots `software` with its network on `link`, lets `until_ready` talk to the guest,
    /// and takes the snapshot.
    ///
    /// # Errors
    /// When a file is missing, or the VMM or the guest does not do its part.
    pub fn make<E: From<MachineError>>(
        software: &'a Software,
        link: &'a Link,
        until_ready: impl FnOnce(&UnixStream, &Console) -> Result<(), E>,
    ) -> Result<Self, E> {
        let vmm = Vmm::start(&software.vmm)?;
        let devices = devices(software);
        vmm.prepare(MEMORY_MIB, &devices)?;
        let length = u64::from(MEMORY_MIB) << 20;
        let memory = memfd::create("bench", length).map_err(prepare("make a memfd"))?;
        let (kernel, initramfs) = (open(&software.kernel)?, open(&software.initramfs)?);
        let disks = open_all(software)?;
        let (stream, theirs) = channel()?;
        let (console, serial) = Console::new()?;
        let command = Command::Boot {
            command_line: format!("{COMMAND_LINE} channel={CHANNEL_PORT}"),
            devices,
            hub: false,
        };
        let mut fds = vec![
            memory.as_fd(),
            kernel.as_fd(),
            initramfs.as_fd(),
            serial.as_fd(),
            theirs.as_fd(),
        ];
        fds.extend(disks.iter().map(AsFd::as_fd));
        fds.push(link.tap());
        vmm.expect(&command, &fds, |reply| matches!(reply, Reply::Booted))?;
        until_ready(&stream, &console)?;
        let state = tempfile::tempfile().map_err(prepare("make a temporary file"))?;
        vmm.expect(&Command::Snapshot, &[state.as_fd()], |reply| {
            matches!(reply, Reply::Snapshotted { .. })
        })?;
        // Complete: no page of it has to be brought by anybody.
        let all = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&memory, all, 0, length)
            .map_err(|errno| prepare("fill a memfd")(errno.into()))?;
        Ok(Self {
            software,
            link,
            memory,
            state,
        })
    }

    /// A VMM process in which this snapshot can be [restored](Self::restore).
    ///
    /// # Errors
    /// When it does not start.
    pub fn blank(&self) -> Result<Vmm, MachineError> {
        let vmm = Vmm::start(&self.software.vmm)?;
        vmm.prepare(MEMORY_MIB, &devices(self.software))?;
        Ok(vmm)
    }

    /// Restores it.
    ///
    /// # Errors
    /// When a file is missing or the VMM refuses.
    pub fn restore(&self, vmm: Vmm) -> Result<Machine, MachineError> {
        let (console, command) = self.load(&vmm, None)?;
        vmm.answered(command, |reply| matches!(reply, Reply::Restored))?;
        Ok(Machine { vmm, console })
    }

    /// Restores it and lets its guest run, as an agent does: in one command, with what
    /// `say` writes waiting in the channel. The machine is there when `hear` has heard
    /// its guest.
    ///
    /// # Errors
    /// When a file is missing or the VMM refuses, and those of the two.
    pub fn live<T, E: From<MachineError>>(
        &self,
        vmm: Vmm,
        say: impl FnOnce(&UnixStream) -> Result<(), E>,
        hear: impl FnOnce(&UnixStream) -> Result<T, E>,
    ) -> Result<(Machine, T), E> {
        let (stream, theirs) = channel()?;
        say(&stream)?;
        let (console, command) = self.load(&vmm, Some(theirs))?;
        let heard = hear(&stream)?;
        vmm.answered(command, is_running)?;
        Ok((Machine { vmm, console }, heard))
    }

    /// Gives the command to restore it, and to run it if there is a channel. Returns the
    /// command's name, too.
    fn load(
        &self,
        vmm: &Vmm,
        channel: Option<OwnedFd>,
    ) -> Result<(Console, &'static str), MachineError> {
        let (console, serial) = Console::new()?;
        let disks = open_all(self.software)?;
        let mut fds = vec![self.memory.as_fd(), self.state.as_fd(), serial.as_fd()];
        fds.extend(disks.iter().map(AsFd::as_fd));
        fds.push(self.link.tap());
        fds.extend(channel.iter().map(AsFd::as_fd));
        let command = Command::Restore {
            devices: devices(self.software),
            lazy: false,
            written: Vec::new(),
            whole: None,
            run: channel.as_ref().map(|_| RUN),
        };
        vmm.tell(&command, &fds)?;
        Ok((console, command.name()))
    }
}

fn open_all(software: &Software) -> Result<Vec<File>, MachineError> {
    software.disks.iter().map(|disk| open(disk)).collect()
}

/// A machine that was restored.
#[derive(Debug)]
pub struct Machine {
    vmm: Vmm,
    console: Console,
}

impl Machine {
    /// Lets the guest run; the host's end of its channel.
    ///
    /// # Errors
    /// When the VMM refuses.
    pub fn run(&self) -> Result<UnixStream, MachineError> {
        let (stream, theirs) = channel()?;
        self.vmm
            .expect(&Command::Run(RUN), &[theirs.as_fd()], is_running)?;
        Ok(stream)
    }

    /// Lets the guest run as an agent does: with what `say` writes waiting in the channel,
    /// and without waiting for anything but what `hear` hears.
    ///
    /// # Errors
    /// When the VMM refuses, and those of the two.
    pub fn live<T, E: From<MachineError>>(
        &self,
        say: impl FnOnce(&UnixStream) -> Result<(), E>,
        hear: impl FnOnce(&UnixStream) -> Result<T, E>,
    ) -> Result<T, E> {
        let (stream, theirs) = channel()?;
        say(&stream)?;
        let command = Command::Run(RUN);
        self.vmm.tell(&command, &[theirs.as_fd()])?;
        let heard = hear(&stream)?;
        self.vmm.answered(command.name(), is_running)?;
        Ok(heard)
    }

    /// Puts everything back.
    ///
    /// # Errors
    /// When the VMM cannot.
    pub fn reset(&self) -> Result<ResetReport, MachineError> {
        self.vmm.tell(&Command::RESET, &[])?;
        self.was_reset()
    }

    /// Lets the guest run, and puts everything back so long after the command to run.
    ///
    /// # Errors
    /// When the VMM refuses.
    pub fn cut_short(&self, after: Duration) -> Result<ResetReport, MachineError> {
        let (_stream, theirs) = channel()?;
        let command = Command::Run(RUN);
        self.vmm.tell(&command, &[theirs.as_fd()])?;
        std::thread::sleep(after);
        self.vmm.tell(&Command::RESET, &[])?;
        self.vmm.answered(command.name(), is_running)?;
        self.was_reset()
    }

    fn was_reset(&self) -> Result<ResetReport, MachineError> {
        match self.vmm.answer(Command::RESET.name())? {
            Reply::Reset(report) => Ok(report),
            other => Err(self.vmm.refused(Command::RESET.name(), &other)),
        }
    }

    /// What differs from the snapshot.
    ///
    /// # Errors
    /// When the VMM cannot compare.
    pub fn differences(&self) -> Result<Vec<String>, MachineError> {
        match self.vmm.ask(&Command::Verify, &[])? {
            Reply::Verified { differences } => Ok(differences),
            other => Err(self.vmm.refused(Command::Verify.name(), &other)),
        }
    }

    /// The VMM's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.vmm.pid()
    }

    /// What the guest wrote to its serial line.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }
}
