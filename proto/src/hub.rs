//! The vsock hub: how a VMM process, which can open nothing by itself, gets the host
//! ends of its guest's vsock connections.
//!
//! ```text
//!  guest ── connect(CID 2, port) ──► VMM ── Connect ──► agent
//!                                        ◄─ Accept + stream socket, or Refuse ──
//!
//!  agent ── Connect + stream socket ──► VMM ── connect(guest port) ──► guest
//!        ◄─ Connected, or Refused ──────
//! ```
//!
//! One `SOCK_SEQPACKET` socket pair for each lease of a machine: the agent hands one
//! end over with `Run` (or `Boot`), and a reset closes it with every connection that
//! came of it. A packet is one message, postcard encoded. The protocol is part of
//! the control protocol and has its version ([`crate::CONTROL_VERSION`]).
//!
//! Each side numbers the connections that it asks for and never uses a number twice;
//! an answer to a number that is not waited for is dropped, with its descriptor. The
//! port of the invocation channel does not pass through the hub. Whoever asks waits
//! no longer than it wants to: a guest's kernel gives up by itself (Linux: after two
//! seconds), and an agent closes its end of the stream.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::packet::{self, PacketError, Protocol};

/// Largest packet, in bytes.
pub const MAX_PACKET: usize = 64;

const PROTOCOL: Protocol = Protocol {
    name: "hub",
    bytes: MAX_PACKET,
    fds: 1,
};

/// VMM to agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HubRequest {
    /// The guest asks for a connection to the host.
    Connect {
        /// The VMM's number for it.
        id: u64,
        /// Port in the guest that it comes from. Any process in the guest can have
        /// chosen it.
        guest_port: u32,
        /// Port on the host that it is for.
        host_port: u32,
    },
    /// The guest took a connection of the agent.
    Connected {
        /// The agent's number for it.
        id: u64,
    },
    /// The guest did not take a connection of the agent, or the machine has as many
    /// as it can have. The stream's end is closed.
    Refused {
        /// The agent's number for it.
        id: u64,
    },
}

/// Agent to VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HubCommand {
    /// The host takes a connection of the guest. Descriptor: its host end, a stream
    /// socket.
    Accept {
        /// The VMM's number for it.
        id: u64,
    },
    /// The host does not take a connection of the guest.
    Refuse {
        /// The VMM's number for it.
        id: u64,
    },
    /// The host asks for a connection to the guest. Descriptor: its host end, a
    /// stream socket.
    Connect {
        /// The agent's number for it.
        id: u64,
        /// Port in the guest.
        guest_port: u32,
    },
}

impl HubCommand {
    /// Whether a descriptor comes with it.
    #[must_use]
    pub const fn brings_stream(&self) -> bool {
        matches!(self, Self::Accept { .. } | Self::Connect { .. })
    }
}

/// Sends a request or an answer of the VMM. On a non-blocking socket, `WouldBlock`
/// comes back as [`PacketError::Io`].
///
/// # Errors
/// When the socket fails.
pub fn send_request(socket: impl AsFd, request: &HubRequest) -> Result<(), PacketError> {
    packet::send(PROTOCOL, socket, request, &[])
}

/// Receives a request or an answer of the VMM.
///
/// # Errors
/// When the socket fails or is closed, or the packet is no message.
pub fn receive_request(socket: impl AsFd) -> Result<HubRequest, PacketError> {
    packet::receive(PROTOCOL, socket).map(|(request, _)| request)
}

/// Sends a command or an answer of the agent, with the stream that it speaks of.
///
/// # Errors
/// When the socket fails, or the stream is missing or too many.
pub fn send_command(
    socket: impl AsFd,
    command: &HubCommand,
    stream: Option<BorrowedFd<'_>>,
) -> Result<(), PacketError> {
    if command.brings_stream() != stream.is_some() {
        return Err(PacketError::Descriptors);
    }
    packet::send(PROTOCOL, socket, command, stream.as_slice())
}

/// Receives a command or an answer of the agent; there is a stream exactly when it
/// speaks of one.
///
/// # Errors
/// When the socket fails or is closed, or the packet is no message or came without
/// its stream.
pub fn receive_command(socket: impl AsFd) -> Result<(HubCommand, Option<OwnedFd>), PacketError> {
    let (command, fds): (HubCommand, _) = packet::receive(PROTOCOL, socket)?;
    let stream = fds.into_iter().next();
    if command.brings_stream() != stream.is_some() {
        return Err(PacketError::Descriptors);
    }
    Ok((command, stream))
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let kind = SocketType::SEQPACKET;
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let (agent, vmm) = pair();
        let largest = u64::MAX;
        for request in [
            HubRequest::Connect {
                id: largest,
                guest_port: u32::MAX,
                host_port: u32::MAX,
            },
            HubRequest::Connected { id: 1 },
            HubRequest::Refused { id: largest },
        ] {
            send_request(&vmm, &request).unwrap();
            assert_eq!(receive_request(&agent).unwrap(), request);
        }
        let (reader, mut writer) = std::io::pipe().unwrap();
        for command in [
            HubCommand::Accept { id: largest },
            HubCommand::Refuse { id: 2 },
            HubCommand::Connect {
                id: 3,
                guest_port: u32::MAX,
            },
        ] {
            let stream = command.brings_stream().then_some(reader.as_fd());
            send_command(&agent, &command, stream).unwrap();
            let (got, stream) = receive_command(&vmm).unwrap();
            assert_eq!((got, stream.is_some()), (command, command.brings_stream()));
        }
        std::io::Write::write_all(&mut writer, b"open").unwrap();
    }

    #[test]
    fn a_stream_too_few_or_too_many_is_refused_by_both_sides() {
        let (agent, vmm) = pair();
        let (accept, refuse) = (HubCommand::Accept { id: 1 }, HubCommand::Refuse { id: 1 });
        for (command, stream) in [(accept, None), (refuse, Some(agent.as_fd()))] {
            let sent = send_command(&agent, &command, stream);
            assert!(matches!(sent, Err(PacketError::Descriptors)));
            packet::send(PROTOCOL, &agent, &command, stream.as_slice()).unwrap();
            let got = receive_command(&vmm);
            assert!(matches!(got, Err(PacketError::Descriptors)));
        }
        let many = Protocol { fds: 2, ..PROTOCOL };
        packet::send(many, &agent, &accept, &[agent.as_fd(); 2]).unwrap();
        assert!(matches!(receive_command(&vmm), Err(PacketError::TooLong)));
    }

    #[test]
    fn garbage_and_the_end_are_told_apart() {
        let (agent, vmm) = pair();
        rustix::io::write(&agent, &[0xff; MAX_PACKET]).unwrap();
        assert!(matches!(
            receive_command(&vmm),
            Err(PacketError::Message(_))
        ));
        rustix::io::write(&agent, &[0; MAX_PACKET + 1]).unwrap();
        assert!(matches!(receive_command(&vmm), Err(PacketError::TooLong)));
        drop(agent);
        assert!(matches!(receive_command(&vmm), Err(PacketError::Closed)));
        let sent = send_request(&vmm, &HubRequest::Refused { id: 1 });
        assert!(matches!(sent, Err(PacketError::Closed)));
    }
}
