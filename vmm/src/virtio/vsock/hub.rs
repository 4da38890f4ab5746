//! The device's end of the vsock hub ([`snapback_proto::hub`]).
//!
//! What the agent does not take at once waits here, bounded: nothing is heard before
//! everything is said, so a slow agent slows down its own requests, and the guest's
//! are refused. An agent that closes the hub, or does not keep to the protocol, has
//! no hub any more.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use snapback_proto::PacketError;
use snapback_proto::hub::{HubCommand, HubRequest, receive_command, send_request};

use super::MAX_OPENING;
use super::connection::is_transient;
use crate::poll::{HostFd, Interest};

/// There is no hub any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HubGone;

/// A hub.
#[derive(Debug)]
pub(super) struct Hub {
    /// The number of its descriptor.
    pub id: u64,
    socket: HostFd,
    outgoing: VecDeque<HubRequest>,
}

impl Hub {
    pub(super) fn new(id: u64, socket: HostFd) -> Self {
        Self {
            id,
            socket,
            outgoing: VecDeque::new(),
        }
    }

    /// Whether so much waits for the agent that nothing may be asked of it.
    pub(super) fn is_slow(&self) -> bool {
        self.outgoing.len() >= MAX_OPENING
    }

    /// Tells the agent, now or when it can take it.
    pub(super) fn say(&mut self, request: HubRequest) -> Result<(), HubGone> {
        self.outgoing.push_back(request);
        self.flush()
    }

    /// Says what waits, as much as the agent takes.
    pub(super) fn flush(&mut self) -> Result<(), HubGone> {
        while let Some(request) = self.outgoing.front() {
            match send_request(&self.socket, request) {
                Ok(()) => self.outgoing.pop_front(),
                Err(error) if is_later(&error) => break,
                Err(_) => return Err(HubGone),
            };
        }
        Ok(())
    }

    /// What the agent says next, once everything is said to it.
    pub(super) fn hear(&mut self) -> Result<Option<(HubCommand, Option<OwnedFd>)>, HubGone> {
        if !self.outgoing.is_empty() {
            return Ok(None);
        }
        match receive_command(&self.socket) {
            Ok(heard) => Ok(Some(heard)),
            Err(error) if is_later(&error) => Ok(None),
            Err(_) => Err(HubGone),
        }
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.outgoing.len()
    }

    /// Says what to wait for, or for nothing at all.
    pub(super) fn rearm(&mut self, mute: bool) -> io::Result<()> {
        let waits = !self.outgoing.is_empty();
        let interest = Interest {
            readable: !waits,
            writable: waits,
            hangup: false,
        };
        self.socket
            .want(if mute { Interest::NONE } else { interest })
    }
}

fn is_later(error: &PacketError) -> bool {
    matches!(error, PacketError::Io(error) if is_transient(error))
}
