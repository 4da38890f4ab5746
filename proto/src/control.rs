//! What the agent says to a VMM process, and what it answers.
//!
//! One `SOCK_SEQPACKET` socket pair per VMM; a packet is one message, postcard
//! encoded, with the descriptors it speaks of attached (`SCM_RIGHTS`). The agent
//! sends one [`Command`] at a time and waits for its [`Reply`]; an
//! [`Event`] may come at any moment.
//!
//! ```text
//!              Prepare       Boot, Continue              Snapshot
//!   (started) ────────► Blank ──────────► Running ─────────────────► Snapshotted
//!                         │ Restore        ▲   │                      (then it is killed)
//!                         ▼            Run │   │ Reset
//!                       Restored ──────────┘   │
//!                         ▲────────────────────┘
//! ```
//!
//! A `Restore` that carries a [`Run`] goes on to Running by itself. `Verify` is allowed while Restored. The end of the control socket ends the
//! VMM process in every state.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cpu::CpuTemplate;
use crate::packet::{self, PacketError, Protocol};

/// Largest packet, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// Most descriptors that one packet carries: a `Boot` with as many devices as fit
/// a machine, of up to two descriptors each.
pub const MAX_FDS: usize = 40;

const PROTOCOL: Protocol = Protocol {
    name: "control",
    bytes: MAX_PACKET,
    fds: MAX_FDS,
};

/// The control socket in a VMM process, inherited.
pub const CONTROL_FD: i32 = 3;
/// `/dev/kvm` in a VMM process, inherited.
pub const KVM_FD: i32 = 4;
/// `/dev/userfaultfd` in a VMM process, inherited.
pub const USERFAULTFD_FD: i32 = 5;

/// Agent to VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Build everything that does not depend on a snapshot: the KVM VM, its
    /// vCPUs, the interrupt controllers, the memory slots on a reserved range.
    Prepare(Machine),
    /// Load a kernel and start it. Descriptors: memory (memfd of the machine's
    /// memory size, mapped shared), kernel (ELF), initramfs, serial output
    /// (pipe), invocation channel (stream socket), then those of [`Devices`], then
    /// the vsock hub if there is one (see [`crate::hub`]).
    Boot {
        /// The kernel's command line; the VMM adds nothing.
        command_line: String,
        /// The devices that not every machine has.
        devices: Devices,
        /// Whether a hub comes with it, as in [`Command::Run`].
        hub: bool,
    },
    /// Pause at an instant when no device has work in flight and write the
    /// state. Descriptors: where the state goes (an empty file), then for each
    /// scratch disk where its content goes (an empty sparse file of its length). The
    /// memory is in the memfd of `Boot` or `Continue`. Only the end of the process follows.
    Snapshot,
    /// Put a snapshot into a blank machine. Descriptors: memory (memfd, mapped
    /// private), state file, serial output (pipe), copies of the pages that are
    /// `written` if there are any (a file of these, one after the other), then those of
    /// [`Devices`], then those of the run if there is one.
    Restore {
        /// The same devices as at `Boot`; a scratch disk's base is now what it
        /// held at the snapshot.
        devices: Devices,
        /// Whether the memory may lack pages of the snapshot, which are faulted in
        /// through the userfaultfd. Otherwise its holes are zero in the snapshot, too.
        lazy: bool,
        /// Pages that the guest will probably write, at most [`MAX_RUNS`] runs: where the
        /// memory is whole, each is made the machine's own before it is asked for. A hint.
        written: Vec<PageRun>,
        /// The place of a huge page (2 MiB) that the guest will probably write much of, by
        /// its number in the memory file: where the memory is whole, one that was prepared
        /// takes it before the guest is entered. A hint, as `written` is.
        whole: Option<u32>,
        /// Let the guest run at once, as [`Command::Run`] does: one message each way.
        run: Option<Run>,
    },
    /// Let a restored or reset guest run. Descriptors: those of [`Run`].
    Run(Run),
    /// Stop the guest and put everything back to the snapshot.
    Reset {
        /// Most pages to copy. A machine that wrote more is not put back:
        /// [`Reply::OverBudget`].
        page_budget: u64,
    },
    /// Compare the whole of a restored machine with its snapshot.
    Verify,
    /// Put a snapshot into a blank machine and let its guest go on in memory of its own: from
    /// then on it is like one that was booted, and can be snapshotted. Descriptors: memory (a
    /// copy of the snapshot's, memfd, mapped shared), state file, serial output (pipe),
    /// invocation channel (stream socket), then those of [`Devices`].
    Continue {
        /// As for [`Command::Restore`].
        devices: Devices,
    },
}

impl Command {
    /// A reset whatever it costs.
    pub const RESET: Self = Self::Reset {
        page_budget: u64::MAX,
    };

    /// The command's name, for messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Prepare(_) => "prepare",
            Self::Boot { .. } => "boot",
            Self::Snapshot => "snapshot",
            Self::Restore { .. } => "restore",
            Self::Run(_) => "run",
            Self::Reset { .. } => "reset",
            Self::Verify => "verify",
            Self::Continue { .. } => "continue",
        }
    }
}

/// Neighbouring pages of the memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// The first one's number.
    pub first: u32,
    /// How many.
    pub pages: u32,
}

/// Most runs of pages in one command.
pub const MAX_RUNS: usize = 2048;

/// How a guest is let go. Descriptors: the host end of its invocation channel (a fresh
/// stream socket, in which messages may wait already), the vsock hub if there is one (a
/// fresh one too).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Whether a hub comes with it; without one, the guest's other connections are
    /// refused.
    pub hub: bool,
    /// Whether another principal than this run's has run in this machine: every vCPU
    /// passes a branch-predictor barrier first.
    pub barrier: bool,
}

impl Run {
    /// How many descriptors come with it.
    #[must_use]
    pub fn descriptors(self) -> usize {
        1 + usize::from(self.hub)
    }
}

/// The shape of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// [`crate::CONTROL_VERSION`] of the sender.
    pub control_version: u16,
    /// Guest memory, in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u8,
    /// What they can do.
    pub template: CpuTemplate,
    /// How many disks there will be. What depends on the number of devices is built
    /// ahead.
    pub disks: u8,
    /// Whether there will be a net device.
    pub net: bool,
}

/// The devices of a machine that are its own choice. Their descriptors follow in
/// this order: the disks' in order, then the net device's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    /// Disks; the first is the guest's `vda`.
    pub disks: Vec<Disk>,
    /// The network, if there is one.
    pub net: Option<Net>,
}

impl Devices {
    /// Read-only disks and nothing else.
    #[must_use]
    pub fn read_only_disks(count: usize) -> Self {
        Self {
            disks: vec![Disk::ReadOnly; count],
            net: None,
        }
    }

    /// How many descriptors follow for them.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let disks = self.disks.iter().map(Disk::descriptors);
        disks.sum::<usize>() + usize::from(self.net.is_some())
    }
}

/// A disk of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disk {
    /// Shows an image. Descriptor: the image.
    ReadOnly,
    /// A base that the machine's own writes lie over. Descriptors: the base, only
    /// ever read, and the overlay, an empty sparse file of the base's length that
    /// belongs to this machine alone.
    Scratch {
        /// Most bytes that the overlay may take up; over it, writes are I/O errors
        /// to the guest.
        overlay_limit: u64,
    },
}

impl Disk {
    /// How many descriptors follow for it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        match self {
            Self::ReadOnly => 1,
            Self::Scratch { .. } => 2,
        }
    }
}

/// The net device of a machine. Descriptor: a tap (`IFF_TAP`, `IFF_NO_PI`,
/// `IFF_VNET_HDR`) that belongs to this machine alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// The guest's address.
    pub mac: [u8; 6],
}

/// VMM to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmmMessage {
    /// The answer to the command that is being waited for.
    Reply(Reply),
    /// Something happened to the guest.
    Event(Event),
}

/// The answer to one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Prepare`. Descriptor: the userfaultfd of the machine's memory. The
    /// agent gives both to its pager before it sends `Restore`, because KVM
    /// itself reads guest memory while the state is loaded.
    Prepared {
        /// Where guest memory lies in the VMM process.
        ranges: Vec<FaultRange>,
    },
    /// To `Boot`: the vCPUs run.
    Booted,
    /// To `Snapshot`.
    Snapshotted {
        /// Size of the state file, in bytes.
        state_len: u64,
    },
    /// To `Restore` without a run: the guest can `Run`.
    Restored,
    /// To `Run`, and to `Restore` with one.
    Running {
        /// From the command's arrival at the VMM to the moment at which its first vCPU
        /// enters the guest, in nanoseconds.
        entered_ns: u64,
    },
    /// To `Reset`.
    Reset(ResetReport),
    /// To `Reset`: more pages were written than the budget has. The machine was not put
    /// back: the agent must destroy the process.
    OverBudget {
        /// How many.
        pages: u64,
    },
    /// To `Verify`: what differs, at most [`MAX_DIFFERENCES`] of them. Empty
    /// means equal.
    Verified {
        /// Each with its place and both values, in words.
        differences: Vec<String>,
    },
    /// The command failed. Every failure but one of `Verify` ends the machine:
    /// the agent must destroy the process.
    Failed(Failure),
}

/// Most differences that [`Reply::Verified`] lists.
pub const MAX_DIFFERENCES: usize = 32;

/// A range of guest memory as it is mapped in the VMM process; page faults in it
/// come through the userfaultfd after a `Restore`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRange {
    /// Where it begins in the VMM's address space.
    pub address: u64,
    /// Its length, in bytes.
    pub length: u64,
    /// Where it begins in the memory memfd, in bytes.
    pub offset: u64,
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the VMM was doing.
    pub operation: String,
    /// The error and its sources, joined by `: `.
    pub reason: String,
    /// The snapshot section that is to blame, when one is.
    pub section: Option<String>,
}

/// What a reset did and what it cost. Times are in nanoseconds of the host's
/// monotonic clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetReport {
    /// Pages that were copied back.
    pub pages: u64,
    /// Of these, pages that KVM reported.
    pub pages_by_vcpu: u64,
    /// Of these, pages that the VMM's devices wrote.
    pub pages_by_devices: u64,
    /// Stopping the vCPUs.
    pub pause_ns: u64,
    /// Setting all state but memory: the four that follow.
    pub state_ns: u64,
    /// Of this, what the VMM keeps for a running guest.
    pub host_ns: u64,
    /// Of this, devices.
    pub devices_ns: u64,
    /// Of this, interrupt controllers.
    pub interrupts_ns: u64,
    /// Of this, processors.
    pub processors_ns: u64,
    /// Of the pages, those that are copied at every reset because requests keep
    /// writing them.
    pub hot_pages: u64,
    /// Asking which pages were written, and having the others' writes named again.
    pub collect_ns: u64,
    /// That, and copying pages back.
    pub pages_ns: u64,
    /// All of it.
    pub total_ns: u64,
}

/// Something that happened to the guest by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The guest will not run again. When it stopped during a command, this comes
    /// before the command's [`Reply::Failed`].
    Stopped(StopReason),
}

/// Why a guest stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// It powered off (ACPI's soft off).
    PoweredOff,
    /// It asked for a reset (ACPI's reset register, the keyboard controller, or a
    /// triple fault).
    Rebooted,
    /// Its kernel panicked; the serial output says why.
    Panicked,
    /// KVM or the VMM could not go on; why, in words.
    Broken(String),
}

/// A packet of the control socket could not be sent or received.
pub type ControlError = PacketError;

/// Sends one packet. On a non-blocking socket, `WouldBlock` comes back as
/// [`ControlError::Io`].
///
/// # Errors
/// When the packet is too long or the socket fails.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ControlError> {
    packet::send(PROTOCOL, socket, message, fds)
}

/// Receives one packet with its descriptors (which are close-on-exec). On a
/// non-blocking socket, `WouldBlock` comes back as [`ControlError::Io`].
///
/// # Errors
/// When the socket fails or is closed, or the packet is too long or no message.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<(T, Vec<OwnedFd>), ControlError> {
    packet::receive(PROTOCOL, socket)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    const RUN: Command = Command::Run(Run {
        hub: false,
        barrier: false,
    });

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    #[test]
    fn a_command_arrives_with_its_descriptors() {
        let (agent, vmm) = pair();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&agent, &RUN, &[writer.as_fd()]).unwrap();
        drop(writer);
        let (command, fds) = receive::<Command>(&vmm).unwrap();
        assert_eq!(command, RUN);
        assert_eq!(fds.len(), 1);
        rustix::io::write(&fds[0], b"here").unwrap();
        drop(fds);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "here");
    }

    #[test]
    fn a_closed_socket_is_told_from_a_failed_one() {
        let (agent, vmm) = pair();
        drop(agent);
        assert!(matches!(
            receive::<Command>(&vmm),
            Err(ControlError::Closed)
        ));
        assert!(matches!(send(&vmm, &RUN, &[]), Err(ControlError::Closed)));
    }

    #[test]
    fn a_packet_of_garbage_is_refused() {
        let (agent, vmm) = pair();
        rustix::io::write(&agent, &[0xff; 40]).unwrap();
        assert!(matches!(
            receive::<Command>(&vmm),
            Err(ControlError::Message(_))
        ));
    }

    #[test]
    fn more_descriptors_than_allowed_are_not_sent() {
        let (agent, _vmm) = pair();
        let fds = [agent.as_fd(); MAX_FDS + 1];
        assert!(matches!(
            send(&agent, &RUN, &fds),
            Err(ControlError::TooLong)
        ));
    }
}
