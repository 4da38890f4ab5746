//! Packets to the guest: answers first, then payload, one connection after the
//! other.

use std::os::fd::AsFd;

use vm_memory::Permissions;

use super::connection::{Key, is_transient};
use super::device::{Control, Vsock};
use super::packet::{
    HEADER_LEN, HOST_CID, Header, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_RW, OP_SHUTDOWN,
    SHUTDOWN_SEND, TYPE_STREAM,
};
use crate::memory::GuestRam;
use crate::sys::volatile_io;
use crate::virtio::Progress;
use crate::virtio::queue::{Chain, QueueError, VirtQueue};

/// What a try to send brought about.
enum Sent {
    Packet,
    Nothing,
    NoBuffer,
}

impl Vsock {
    /// Sends what can be sent, at most one packet per buffer of the queue.
    pub(super) fn send_all(
        &mut self,
        rx: &mut VirtQueue,
        ram: &GuestRam,
    ) -> Result<Progress, QueueError> {
        self.rx_starved = false;
        self.connections
            .values_mut()
            .for_each(|connection| connection.host_idle = false);
        for _ in 0..rx.size() {
            match self.send_one(rx, ram)? {
                Sent::Packet => {}
                Sent::Nothing => return Ok(Progress::Done),
                Sent::NoBuffer => {
                    self.rx_starved = true;
                    return Ok(Progress::Done);
                }
            }
        }
        Ok(Progress::More)
    }

    fn send_one(&mut self, rx: &mut VirtQueue, ram: &GuestRam) -> Result<Sent, QueueError> {
        self.stage_due();
        if let Some(control) = self.outbox.front().copied() {
            let Some(chain) = rx.pop(ram)? else {
                return Ok(Sent::NoBuffer);
            };
            self.send_control(&control, rx, &chain, ram)?;
            self.outbox.pop_front();
            return Ok(Sent::Packet);
        }
        while let Some(key) = self.next_reader() {
            self.last_served = Some(key);
            match self.send_payload(key, rx, ram)? {
                // Its socket is empty, or has ended: that is for the outbox to tell.
                Sent::Nothing if self.has_due() => return self.send_one_control(rx, ram),
                Sent::Nothing => {}
                other => return Ok(other),
            }
        }
        Ok(Sent::Nothing)
    }

    /// As the first half of [`Self::send_one`], for something that just fell due.
    fn send_one_control(&mut self, rx: &mut VirtQueue, ram: &GuestRam) -> Result<Sent, QueueError> {
        self.stage_due();
        let Some(control) = self.outbox.front().copied() else {
            return Ok(Sent::Nothing);
        };
        let Some(chain) = rx.pop(ram)? else {
            return Ok(Sent::NoBuffer);
        };
        self.send_control(&control, rx, &chain, ram)?;
        self.outbox.pop_front();
        Ok(Sent::Packet)
    }

    /// Moves one thing that a connection owes the guest into the empty outbox; so
    /// the outbox stays bounded, however many connections there are.
    fn stage_due(&mut self) {
        if !self.outbox.is_empty() {
            return;
        }
        if let Some(key) = self.first_orphan() {
            self.reset_connection(key);
            return;
        }
        let due = self.connections.iter_mut().find_map(|(key, connection)| {
            if connection.credit.update_due() {
                return Some((*key, OP_CREDIT_UPDATE, 0));
            }
            if std::mem::take(&mut connection.shutdown_due) {
                return Some((*key, OP_SHUTDOWN, SHUTDOWN_SEND));
            }
            let starving = connection.wants_host() && connection.credit.send_room() == 0;
            if starving && !connection.credit.requested {
                connection.credit.requested = true;
                return Some((*key, OP_CREDIT_REQUEST, 0));
            }
            None
        });
        if let Some((key, op, flags)) = due {
            self.answer(key, op, flags);
        }
    }

    /// The next connection whose host end may have something, in turns.
    fn next_reader(&self) -> Option<Key> {
        let ready = |(key, connection): (&Key, &super::connection::Connection)| {
            (connection.may_read_host() && !connection.host_idle).then_some(*key)
        };
        let after = self.last_served.and_then(|last| {
            let range = (std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded);
            self.connections.range(range).find_map(ready)
        });
        after.or_else(|| self.connections.iter().find_map(ready))
    }

    fn send_control(
        &mut self,
        control: &Control,
        rx: &mut VirtQueue,
        chain: &Chain,
        ram: &GuestRam,
    ) -> Result<(), QueueError> {
        let mut header = Header {
            src_cid: control.host_cid,
            dst_cid: snapback_proto::GUEST_CID.into(),
            src_port: control.key.host_port,
            dst_port: control.key.guest_port,
            kind: control.kind,
            op: control.op,
            flags: control.flags,
            ..Header::default()
        };
        self.tell_credit(control.key, &mut header);
        chain.writable.write(ram, 0, &header.encode())?;
        rx.push_used(ram, chain.head, used_len(0))
    }

    /// Reads from the host's socket into a buffer of the guest.
    fn send_payload(
        &mut self,
        key: Key,
        rx: &mut VirtQueue,
        ram: &GuestRam,
    ) -> Result<Sent, QueueError> {
        let Some(chain) = rx.pop(ram)? else {
            return Ok(Sent::NoBuffer);
        };
        let room = chain
            .writable
            .len()
            .checked_sub(HEADER_LEN)
            .ok_or(QueueError::Buffer)?;
        let Some(connection) = self.connections.get_mut(&key) else {
            rx.undo_pop();
            return Ok(Sent::Nothing);
        };
        let len = room.min(connection.credit.send_room().into());
        if len == 0 {
            // Only good for a packet without payload: have one rather than stand
            // in the way of the buffers behind it.
            let control = Control {
                key,
                host_cid: HOST_CID,
                kind: TYPE_STREAM,
                op: OP_CREDIT_UPDATE,
                flags: 0,
            };
            self.send_control(&control, rx, &chain, ram)?;
            return Ok(Sent::Packet);
        }
        let slices = chain
            .writable
            .slices(ram, HEADER_LEN, len, Permissions::Write)?;
        let Some(host) = &connection.host else {
            rx.undo_pop();
            return Ok(Sent::Nothing);
        };
        let read = match volatile_io::readv(host.as_fd(), &slices) {
            Ok(read) => u32::try_from(read).unwrap_or(u32::MAX),
            Err(error) => {
                rx.undo_pop();
                connection.host_idle = true;
                if !is_transient(&error) {
                    self.reset_connection(key);
                }
                return Ok(Sent::Nothing);
            }
        };
        if read == 0 {
            rx.undo_pop();
            connection.host_shutdown = true;
            connection.shutdown_due = true;
            return Ok(Sent::Nothing);
        }
        connection.credit.tx_cnt = connection.credit.tx_cnt.wrapping_add(read);
        let mut header = Header {
            src_cid: HOST_CID,
            dst_cid: snapback_proto::GUEST_CID.into(),
            src_port: key.host_port,
            dst_port: key.guest_port,
            len: read,
            kind: TYPE_STREAM,
            op: OP_RW,
            ..Header::default()
        };
        self.tell_credit(key, &mut header);
        chain.writable.write(ram, 0, &header.encode())?;
        rx.push_used(ram, chain.head, used_len(read))?;
        Ok(Sent::Packet)
    }

    /// Every packet of a connection tells its credit.
    fn tell_credit(&mut self, key: Key, header: &mut Header) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.credit.told_fwd_cnt = connection.credit.fwd_cnt;
            header.buf_alloc = super::BUF_ALLOC;
            header.fwd_cnt = connection.credit.fwd_cnt;
        }
    }
}

fn used_len(payload: u32) -> u32 {
    payload.saturating_add(44)
}
