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

    /// Gives a command and returns the answer to it.
    pub(super) fn ask(
        &self,
        command: &Command,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, MachineError> {
        let silent = |source| MachineError::Silent {
            command: command.name(),
            source,
        };
        control::send(&self.socket, command, fds).map_err(silent)?;
        match control::receive(&self.socket).map_err(silent)?.0 {
            VmmMessage::Reply(reply) => Ok(reply),
            VmmMessage::Event(event) => Err(MachineError::Refused {
                command: command.name(),
                answer: format!("{event:?}"),
            }),
        }
    }

    pub(super) fn expect(
        &self,
        command: &Command,
        fds: &[BorrowedFd<'_>],
        wanted: impl FnOnce(&Reply) -> bool,
    ) -> Result<(), MachineError> {
        let reply = self.ask(command, fds)?;
        if wanted(&reply) {
            return Ok(());
        }
        Err(self.refused(command, &reply))
    }

    pub(super) fn refused(&self, command: &Command, reply: &Reply) -> MachineError {
        MachineError::Refused {
            command: command.name(),
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
