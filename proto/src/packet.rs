//! Packets of a `SOCK_SEQPACKET` socket: one message each, postcard encoded, with
//! the descriptors it speaks of attached (`SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::{WireError, decode, encode};

/// Most descriptors in one packet of any protocol.
const MOST_FDS: usize = 40;

/// A protocol's name and the caps of its packets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Protocol {
    pub name: &'static str,
    /// Largest message, in bytes.
    pub bytes: usize,
    /// Most descriptors, at most [`MOST_FDS`].
    pub fds: usize,
}

/// A packet could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The socket failed.
    #[error("the socket failed")]
    Io(#[from] io::Error),
    /// The other side is gone.
    #[error("the other side of the socket is gone")]
    Closed,
    /// A packet does not fit.
    #[error("a packet is longer than its protocol allows or has more descriptors")]
    TooLong,
    /// A message came with other descriptors than it speaks of.
    #[error("a message does not have exactly the descriptors that it speaks of")]
    Descriptors,
    /// A packet is not a message.
    #[error(transparent)]
    Message(#[from] WireError),
}

/// Sends one packet.
pub(crate) fn send<T: Serialize>(
    protocol: Protocol,
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), PacketError> {
    let bytes = encode(protocol.name, message)?;
    if bytes.len() > protocol.bytes || fds.len() > protocol.fds {
        return Err(PacketError::TooLong);
    }
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(PacketError::TooLong);
    }
    let sent = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    );
    match sent {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(PacketError::Closed),
        Err(errno) => Err(PacketError::Io(errno.into())),
    }
}

/// Receives one packet with its descriptors (which are close-on-exec).
pub(crate) fn receive<T: DeserializeOwned>(
    protocol: Protocol,
    socket: impl AsFd,
) -> Result<(T, Vec<OwnedFd>), PacketError> {
    let mut bytes = vec![0; protocol.bytes];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    let got = match got {
        Ok(got) => got,
        Err(rustix::io::Errno::CONNRESET) => return Err(PacketError::Closed),
        Err(errno) => return Err(PacketError::Io(errno.into())),
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Err(PacketError::Closed);
    }
    let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    if got.flags.intersects(cut) || fds.len() > protocol.fds {
        return Err(PacketError::TooLong);
    }
    Ok((decode(protocol.name, &bytes[..got.bytes])?, fds))
}
