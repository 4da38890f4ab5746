//! One stream: its credit (section 5.10.6.3), and what lies between both ends.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use rustix::net::{SendFlags, Shutdown};
use vm_memory::Bytes;

use super::BUF_ALLOC;
use super::packet::{Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::state::ConnectionV1;
use crate::poll::HostFd;
use crate::sys::volatile_io;
use crate::virtio::queue::{GuestSlice, QueueError};

/// Names a connection. Host port first: the table is ordered by services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

/// Who has room for how much. All counters wrap.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Credit {
    pub peer_buf_alloc: u32,
    pub peer_fwd_cnt: u32,
    pub tx_cnt: u32,
    pub rx_cnt: u32,
    pub fwd_cnt: u32,
    pub told_fwd_cnt: u32,
    pub requested: bool,
}

impl Credit {
    /// Notes what the guest tells in every packet.
    pub(super) fn hear(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        if self.send_room() > 0 {
            self.requested = false;
        }
    }

    /// Bytes that the guest has room for.
    pub(super) fn send_room(&self) -> u32 {
        self.peer_buf_alloc
            .saturating_sub(self.tx_cnt.wrapping_sub(self.peer_fwd_cnt))
    }

    /// Bytes that the guest may still send. A guest that sends more breaks the rules.
    pub(super) fn receive_room(&self) -> u32 {
        BUF_ALLOC.saturating_sub(self.rx_cnt.wrapping_sub(self.fwd_cnt))
    }

    /// Whether the guest believes that less than half of the room is left, and is
    /// wrong. (Telling it of every byte would double the packets.)
    pub(super) fn update_due(&self) -> bool {
        let believed = self.rx_cnt.wrapping_sub(self.told_fwd_cnt);
        believed > BUF_ALLOC / 2 && self.told_fwd_cnt != self.fwd_cnt
    }
}

/// A host socket failed: the connection is to be reset.
#[derive(Debug)]
pub(super) struct HostGone;

/// What became of payload.
#[derive(Debug)]
pub(super) enum Delivery {
    Taken,
    HostGone,
}

/// An established connection.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub credit: Credit,
    /// The host's end; a restored connection has none at first.
    pub host: Option<HostFd>,
    /// From the guest, not yet taken by the host: at most [`BUF_ALLOC`] bytes.
    pub pending: VecDeque<u8>,
    /// What the guest said that it will not do any more.
    pub guest_shutdown: u32,
    /// The host sends no more, and the guest was told or will be.
    pub host_shutdown: bool,
    /// The guest is still to be told so.
    pub shutdown_due: bool,
    /// Nothing to read when last tried.
    pub host_idle: bool,
    /// Came with a snapshot and has no host end to come: to be reset.
    pub orphan: bool,
}

impl Connection {
    /// A connection that a guest just asked for.
    pub(super) fn open(host: HostFd, request: &Header) -> Self {
        let mut connection = Self {
            host: Some(host),
            ..Self::default()
        };
        connection.credit.hear(request);
        connection
    }

    /// The connection of a snapshot.
    pub(super) fn restored(state: &ConnectionV1, orphan: bool) -> Self {
        Self {
            credit: Credit {
                peer_buf_alloc: state.peer_buf_alloc,
                peer_fwd_cnt: state.peer_fwd_cnt,
                tx_cnt: state.tx_cnt,
                rx_cnt: state.rx_cnt,
                // Nothing is pending in a snapshot.
                fwd_cnt: state.rx_cnt,
                told_fwd_cnt: state.told_fwd_cnt,
                requested: state.credit_requested,
            },
            guest_shutdown: state.guest_shutdown,
            host_shutdown: state.host_shutdown,
            orphan,
            ..Self::default()
        }
    }

    /// Whether the host's end may be read now.
    pub(super) fn may_read_host(&self) -> bool {
        self.wants_host() && self.credit.send_room() > 0
    }

    /// Whether payload of the host would be of use, had the guest room for it.
    pub(super) fn wants_host(&self) -> bool {
        self.host.is_some() && !self.host_shutdown && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// Whether nothing is between the two ends.
    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_empty() && !self.shutdown_due && !self.orphan
    }

    /// Takes payload from the guest: the host gets what it takes now, the rest
    /// waits. The caller has checked `len` against the room.
    pub(super) fn deliver(
        &mut self,
        slices: &[GuestSlice<'_>],
        len: u32,
    ) -> Result<Delivery, QueueError> {
        self.credit.rx_cnt = self.credit.rx_cnt.wrapping_add(len);
        let mut sent = 0;
        if self.pending.is_empty()
            && let Some(host) = &self.host
        {
            match volatile_io::send(host.as_fd(), slices) {
                Ok(bytes) => sent = bytes,
                Err(error) if is_transient(&error) => {}
                Err(_) => return Ok(Delivery::HostGone),
            }
        }
        self.forwarded(sent);
        let mut skip = sent;
        for slice in slices {
            let start = skip.min(slice.len());
            skip -= start;
            let mut bytes = vec![0; slice.len() - start];
            slice
                .read_slice(&mut bytes, start)
                .map_err(|_| QueueError::Buffer)?;
            self.pending.extend(bytes);
        }
        Ok(Delivery::Taken)
    }

    /// Gives the host what waits for it, as much as it takes.
    pub(super) fn flush(&mut self) -> Result<(), HostGone> {
        let Some(host) = &self.host else {
            return Ok(());
        };
        let mut flushed = 0;
        while !self.pending.is_empty() {
            let (chunk, _) = self.pending.as_slices();
            match rustix::net::send(host, chunk, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => {
                    self.pending.drain(..sent.min(self.pending.len()));
                    flushed += sent;
                }
                Err(error) if is_transient(&error.into()) => break,
                Err(_) => return Err(HostGone),
            }
        }
        self.forwarded(flushed);
        self.pass_shutdown_on();
        Ok(())
    }

    /// Throws away what waits for the host. The guest has its credit back.
    pub(super) fn discard_pending(&mut self) {
        let lost = self.pending.len();
        self.pending = VecDeque::new();
        self.forwarded(lost);
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

    fn forwarded(&mut self, bytes: usize) {
        // Never more than `BUF_ALLOC`.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.credit.fwd_cnt = self.credit.fwd_cnt.wrapping_add(bytes);
    }
}

/// Whether to try again later.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
