//! The process and its control socket.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Stdio};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use snapback_proto::CONTROL_VERSION;
use snapback_proto::control::{
    self, CONTROL_FD, Command, Devices, KVM_FD, Machine, Reply, USERFAULTFD_FD, VmmMessage,
};
use snapback_proto::cpu::CpuTemplate;

use super::{MachineError, PATIENCE, prepare};

/// A VMM process; it is killed when it is dropped.
#[derive(Debug)]
pub struct Vmm {
    process: Child,
    socket: OwnedFd,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Vmm {
    /// Starts `program` with what an agent lets it inherit.
    ///
    /// # Errors
    /// When a device is missing or the program does not start.
    pub fn start(program: &Path) -> Result<Self, MachineError> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let pair = socketpair(AddressFamily::UNIX, kind, flags, None).and_then(|pair| {
            sockopt::set_socket_timeout(&pair.0, sockopt::Timeout::Recv, Some(PATIENCE))?;
            Ok(pair)
        });
        let (socket, theirs) =
            pair.map_err(|errno| prepare("make a control socket")(errno.into()))?;
        let mapping = |parent_fd, child_fd| FdMapping {
            parent_fd,
            child_fd,
        };
        let inherited = vec![
            mapping(theirs, CONTROL_FD),
            mapping(device("/dev/kvm")?, KVM_FD),
            mapping(device("/dev/userfaultfd")?, USERFAULTFD_FD),
        ];
        let process = std::process::Command::new(program)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .fd_mappings(inherited)
            .map_err(std::io::Error::other)
            .and_then(std::process::Command::spawn)
            .map_err(prepare(format!("start {}", program.display())))?;
        Ok(Self { process, socket })
    }

    /// Prepares a machine of one vCPU.
    pub(super) fn prepare(&self, memory_mib: u32, devices: &Devices) -> Result<(), MachineError> {
        let machine = Machine {
            control_version: CONTROL_VERSION,
            memory_mib,
            vcpus: 1,
            template: CpuTemplate::Host,
            disks: u8::try_from(devices.disks.len()).unwrap_or(u8::MAX),
            net: devices.net.is_some(),
        };
        self.expect(&Command::Prepare(machine), &[], |reply| {
            matches!(reply, Reply::Prepared { .. })
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Gives a command, to which there will be an answer.
    pub(super) fn tell(
        &self,
        command: &Command,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), MachineError> {
        control::send(&self.socket, command, fds).map_err(|source| MachineError::Silent {
            command: command.name(),
            source,
        })
    }

    /// Waits for the answer to a command of that name.
    pub(super) fn answer(&self, command: &'static str) -> Result<Reply, MachineError> {
        let received = control::receive(&self.socket);
        match received
            .map_err(|source| MachineError::Silent { command, source })?
            .0
        {
            VmmMessage::Reply(reply) => Ok(reply),
            VmmMessage::Event(event) => Err(MachineError::Refused {
                command,
                answer: format!("{event:?}"),
            }),
        }
    }

    /// Waits for the answer to a command of that name, and refuses others than the wanted.
    pub(super) fn answered(
        &self,
        command: &'static str,
        wanted: impl FnOnce(&Reply) -> bool,
    ) -> Result<(), MachineError> {
        let reply = self.answer(command)?;
        if wanted(&reply) {
            return Ok(());
        }
        Err(self.refused(command, &reply))
    }

    /// Gives a command and returns the answer to it.
    pub(super) fn ask(
        &self,
        command: &Command,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, MachineError> {
        self.tell(command, fds)?;
        self.answer(command.name())
    }

    pub(super) fn expect(
        &self,
        command: &Command,
        fds: &[BorrowedFd<'_>],
        wanted: impl FnOnce(&Reply) -> bool,
    ) -> Result<(), MachineError> {
        self.tell(command, fds)?;
        self.answered(command.name(), wanted)
    }

    pub(super) fn refused(&self, command: &'static str, reply: &Reply) -> MachineError {
        MachineError::Refused {
            command,
            answer: format!("{reply:?}"),
        }
    }
}

fn device(path: &str) -> Result<OwnedFd, MachineError> {
    let opened = File::options().read(true).write(true).open(path);
    opened
        .map(OwnedFd::from)
        .map_err(prepare(format!("open {path}")))
}
