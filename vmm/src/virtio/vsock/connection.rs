//! One stream, and what lies between both ends.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use rustix::net::{SendFlags, Shutdown};
use vm_memory::Bytes;

use super::credit::Credit;
use super::packet::{
    Header, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST, OP_RESPONSE, OP_SHUTDOWN,
    SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
};
use super::stage::Stage;
use crate::poll::{HostFd, Interest};
use crate::sys::volatile_io;
use crate::virtio::queue::{GuestSlice, QueueError};

/// Names a connection. Host port first: the table is ordered by services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

impl Key {
    /// The connection that a packet of the guest speaks of.
    pub(super) fn of(header: &Header) -> Self {
        Self {
            host_port: header.dst_port,
            guest_port: header.src_port,
        }
    }
}

/// A host socket failed: the connection is to be reset.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HostGone;

/// What the guest is still to be told. Each thing once, however often it fell due.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owed {
    /// That the connection is wanted, or is there.
    pub open: bool,
    /// Its credit.
    pub credit: bool,
    /// That its credit is wanted.
    pub ask: bool,
    /// Which directions the host has ended.
    pub shutdown: bool,
}

/// A connection, from the first wish for it to its end.
#[derive(Debug)]
pub(super) struct Connection {
    /// Its number: for the hub while it is asked for, and of its host descriptor.
    pub id: u64,
    pub stage: Stage,
    pub credit: Credit,
    /// The host's end. Not there yet, or not any more because both directions have
    /// ended on the host's side.
    pub host: Option<HostFd>,
    /// From the guest, not yet taken by the host: at most what was promised.
    pub pending: VecDeque<u8>,
    /// What the guest said that it will not do any more (shutdown flags).
    pub guest_shutdown: u32,
    /// What the host will not do any more: the guest was told or is to be.
    pub host_shutdown: u32,
    pub owed: Owed,
    /// Its places among those that owe something, and those that have something to
    /// read. The table's business.
    pub owing_turn: Option<u64>,
    pub reader_turn: Option<u64>,
    /// Its interest may have changed. The table's business.
    pub touched: bool,
}

impl Connection {
    pub(super) fn new(id: u64, stage: Stage, credit: Credit) -> Self {
        Self {
            id,
            stage,
            credit,
            host: None,
            pending: VecDeque::new(),
            guest_shutdown: 0,
            host_shutdown: 0,
            owed: Owed::default(),
            owing_turn: None,
            reader_turn: None,
            touched: false,
        }
    }

    /// Whether the host's end may have, or get, something that the guest wants.
    pub(super) fn reads_host(&self) -> bool {
        self.host.is_some()
            && self.stage == Stage::Open
            && !self.owed.open
            && self.host_shutdown & SHUTDOWN_SEND == 0
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// What to wait for on the host's end.
    pub(super) fn interest(&self) -> Interest {
        if self.stage != Stage::Open || self.owed.open {
            return Interest::NONE;
        }
        let reads = self.reads_host();
        Interest {
            readable: reads && self.reader_turn.is_none() && self.credit.send_room() > 0,
            writable: !self.pending.is_empty(),
            // Where nothing is read any more, the end would not show.
            hangup: !reads,
        }
    }

    /// Whether nothing is between the two ends.
    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_empty() && self.owed == Owed::default()
    }

    /// Whether the guest has ended both directions and the host has everything.
    pub(super) fn is_over(&self) -> bool {
        self.guest_shutdown == SHUTDOWN_BOTH && self.pending.is_empty()
    }

    /// The next packet that is owed, and its flags.
    pub(super) fn next_owed(&self) -> Option<(u16, u32)> {
        if self.owed.open {
            let calling = matches!(self.stage, Stage::Calling(_));
            return Some((if calling { OP_REQUEST } else { OP_RESPONSE }, 0));
        }
        if self.owed.credit {
            return Some((OP_CREDIT_UPDATE, 0));
        }
        if self.owed.ask {
            return Some((OP_CREDIT_REQUEST, 0));
        }
        self.owed
            .shutdown
            .then_some((OP_SHUTDOWN, self.host_shutdown))
    }

    /// A packet was sent: it told the credit too.
    pub(super) fn sent(&mut self, op: u16) {
        self.credit.told_fwd_cnt = self.credit.fwd_cnt;
        self.owed.credit = false;
        match op {
            OP_REQUEST | OP_RESPONSE => self.owed.open = false,
            OP_CREDIT_REQUEST => self.owed.ask = false,
            OP_SHUTDOWN => self.owed.shutdown = false,
            _ => {}
        }
    }

    /// Asks the guest for credit, once.
    pub(super) fn ask_for_credit(&mut self) {
        if !self.credit.requested {
            self.credit.requested = true;
            self.owed.ask = true;
        }
    }

    /// Takes payload from the guest: the host gets what it takes now, the rest
    /// waits. The caller has checked `len` against the room.
    pub(super) fn deliver(
        &mut self,
        slices: &[GuestSlice<'_>],
        len: u32,
    ) -> Result<Result<(), HostGone>, QueueError> {
        self.credit.rx_cnt = self.credit.rx_cnt.wrapping_add(len);
        let mut sent = 0;
        if self.pending.is_empty()
            && let Some(host) = &self.host
        {
            match volatile_io::send(host.as_fd(), slices) {
                Ok(bytes) => sent = bytes,
                Err(error) if is_transient(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.host_ends(SHUTDOWN_RECEIVE);
                }
                Err(_) => return Ok(Err(HostGone)),
            }
        }
        self.forwarded(sent);
        if self.host_shutdown & SHUTDOWN_RECEIVE != 0 {
            let rest = usize::try_from(len).unwrap_or(0).saturating_sub(sent);
            self.forwarded(rest);
            return Ok(Ok(()));
        }
        for slice in slices {
            let start = sent.min(slice.len());
            sent -= start;
            let mut bytes = vec![0; slice.len() - start];
            slice
                .read_slice(&mut bytes, start)
                .map_err(|_| QueueError::Buffer)?;
            self.pending.extend(bytes);
        }
        Ok(Ok(()))
    }

    /// Gives the host what waits for it, as much as it takes.
    pub(super) fn flush(&mut self) -> Result<(), HostGone> {
        let Some(host) = &self.host else {
            return Ok(());
        };
        let (mut flushed, mut broken) = (0, false);
        while !self.pending.is_empty() {
            let (chunk, _) = self.pending.as_slices();
            match rustix::net::send(host, chunk, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => {
                    self.pending.drain(..sent.min(self.pending.len()));
                    flushed += sent;
                }
                Err(rustix::io::Errno::PIPE) => {
                    broken = true;
                    break;
                }
                Err(error) if is_transient(&error.into()) => break,
                Err(_) => return Err(HostGone),
            }
        }
        self.forwarded(flushed);
        if broken {
            self.host_ends(SHUTDOWN_RECEIVE);
        }
        if self.pending.is_empty() {
            // Most connections never need it again.
            self.pending = VecDeque::new();
        }
        self.pass_shutdown_on();
        Ok(())
    }

    /// Throws away what waits for the host. The guest has its credit back.
    pub(super) fn discard_pending(&mut self) {
        let lost = self.pending.len();
        self.pending = VecDeque::new();
        self.forwarded(lost);
    }

    /// The guest ends directions: `flags` of a shutdown packet.
    pub(super) fn guest_ends(&mut self, flags: u32) {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        self.pass_shutdown_on();
    }

    /// The host has ended directions (shutdown flags): the guest is to be told.
    pub(super) fn host_ends(&mut self, flags: u32) {
        let before = self.host_shutdown;
        self.host_shutdown |= flags;
        self.owed.shutdown |= self.host_shutdown != before;
        if self.host_shutdown & SHUTDOWN_RECEIVE != 0 {
            self.discard_pending();
        }
        if self.host_shutdown == SHUTDOWN_BOTH {
            self.host = None;
        }
    }

    /// Tells the host which directions the guest has ended, once all before it has
    /// arrived. An error means that the host is gone, which reading will show.
    pub(super) fn pass_shutdown_on(&self) {
        let Some(host) = &self.host else { return };
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && self.pending.is_empty() {
            let _ = rustix::net::shutdown(host, Shutdown::Write);
        }
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            let _ = rustix::net::shutdown(host, Shutdown::Read);
        }
    }

    /// The host took bytes, or they are lost: there is room for others.
    fn forwarded(&mut self, bytes: usize) {
        // Never more than what was promised.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.credit.fwd_cnt = self.credit.fwd_cnt.wrapping_add(bytes);
        self.owed.credit |= self.credit.update_due();
    }
}

/// Whether to try again later.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
