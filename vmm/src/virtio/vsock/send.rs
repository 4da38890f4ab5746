//! Packets to the guest: what is owed and payload take turns, and so do the
//! connections among themselves.

use std::os::fd::AsFd;

use vm_memory::Permissions;

use super::connection::{Key, is_transient};
use super::device::Vsock;
use super::packet::{
    HEADER_LEN, HOST_CID, Header, OP_CREDIT_UPDATE, OP_RESPONSE, OP_RST, OP_RW, SHUTDOWN_SEND,
    TYPE_STREAM,
};
use crate::memory::GuestRam;
use crate::sys::volatile_io;
use crate::virtio::Progress;
use crate::virtio::queue::{Chain, QueueError, VirtQueue};

/// What a try to send brought about.
#[derive(Debug, PartialEq, Eq)]
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
        self.payload_first = !self.payload_first;
        if self.payload_first {
            let sent = self.send_payload(rx, ram)?;
            if sent != Sent::Nothing {
                return Ok(sent);
            }
        }
        let sent = self.send_owed(rx, ram)?;
        if sent != Sent::Nothing || self.payload_first {
            return Ok(sent);
        }
        let sent = self.send_payload(rx, ram)?;
        if sent != Sent::Nothing {
            return Ok(sent);
        }
        // What was read may have been an end, which is owed now.
        self.send_owed(rx, ram)
    }

    /// Sends one packet without payload: a reset, or what a connection owes.
    fn send_owed(&mut self, rx: &mut VirtQueue, ram: &GuestRam) -> Result<Sent, QueueError> {
        if let Some(reset) = self.resets.first() {
            let Some(chain) = rx.pop(ram)? else {
                return Ok(Sent::NoBuffer);
            };
            let header = Header {
                src_cid: reset.host_cid,
                kind: reset.kind,
                // Linux notes this of a reset, too: without room, whoever polls a
                // stream that still has something unread would never learn that
                // writing to it fails.
                buf_alloc: u32::MAX,
                ..header_of(reset.key, OP_RST)
            };
            put(&header, rx, &chain, ram)?;
            self.resets.pop();
            return Ok(Sent::Packet);
        }
        let Some((key, op, flags)) = self.table.first_owing() else {
            return Ok(Sent::Nothing);
        };
        let Some(chain) = rx.pop(ram)? else {
            return Ok(Sent::NoBuffer);
        };
        let header = Header {
            flags,
            ..header_of(key, op)
        };
        self.send_packet(key, header, rx, &chain, ram)?;
        self.table.had_turn_to_send(key);
        if op == OP_RESPONSE {
            self.table.queue_reader(key);
        }
        Ok(Sent::Packet)
    }

    /// Sends payload of the first connection whose host end has some.
    fn send_payload(&mut self, rx: &mut VirtQueue, ram: &GuestRam) -> Result<Sent, QueueError> {
        while let Some(key) = self.table.first_reader() {
            match self.read_host(key, rx, ram)? {
                Sent::NoBuffer => return Ok(Sent::NoBuffer),
                Sent::Packet => {
                    // Behind the others, for there may be more.
                    self.table.had_turn_to_be_read(key);
                    self.table.queue_reader(key);
                    return Ok(Sent::Packet);
                }
                Sent::Nothing => {
                    self.table.had_turn_to_be_read(key);
                    self.table.queue_owed(key);
                }
            }
        }
        Ok(Sent::Nothing)
    }

    /// Reads from a host's socket into a buffer of the guest.
    fn read_host(
        &mut self,
        key: Key,
        rx: &mut VirtQueue,
        ram: &GuestRam,
    ) -> Result<Sent, QueueError> {
        let Some(connection) = self.table.get_mut(key).filter(|known| known.reads_host()) else {
            return Ok(Sent::Nothing);
        };
        let credit = connection.credit.send_room();
        if credit == 0 {
            connection.ask_for_credit();
            return Ok(Sent::Nothing);
        }
        let Some(chain) = rx.pop(ram)? else {
            return Ok(Sent::NoBuffer);
        };
        let room = chain
            .writable
            .len()
            .checked_sub(HEADER_LEN)
            .ok_or(QueueError::Buffer)?;
        let len = room.min(credit.into());
        if len == 0 {
            // Only good for a packet without payload: have one rather than stand
            // in the way of the buffers behind it.
            self.send_packet(key, header_of(key, OP_CREDIT_UPDATE), rx, &chain, ram)?;
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
                if !is_transient(&error) {
                    self.reset_connection(key);
                }
                return Ok(Sent::Nothing);
            }
        };
        if read == 0 {
            rx.undo_pop();
            connection.host_ends(SHUTDOWN_SEND);
            return Ok(Sent::Nothing);
        }
        connection.credit.tx_cnt = connection.credit.tx_cnt.wrapping_add(read);
        let header = Header {
            len: read,
            ..header_of(key, OP_RW)
        };
        self.send_packet(key, header, rx, &chain, ram)?;
        Ok(Sent::Packet)
    }

    /// Sends a packet of a connection: it tells the connection's credit, too.
    fn send_packet(
        &mut self,
        key: Key,
        mut header: Header,
        rx: &mut VirtQueue,
        chain: &Chain,
        ram: &GuestRam,
    ) -> Result<(), QueueError> {
        if let Some(connection) = self.table.get_mut(key) {
            header.buf_alloc = connection.credit.buf_alloc;
            header.fwd_cnt = connection.credit.fwd_cnt;
            connection.sent(header.op);
        }
        put(&header, rx, chain, ram)
    }
}

fn header_of(key: Key, op: u16) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: snapback_proto::GUEST_CID.into(),
        src_port: key.host_port,
        dst_port: key.guest_port,
        kind: TYPE_STREAM,
        op,
        ..Header::default()
    }
}

/// Puts a header before the payload that is there already, and hands the buffer back.
fn put(
    header: &Header,
    rx: &mut VirtQueue,
    chain: &Chain,
    ram: &GuestRam,
) -> Result<(), QueueError> {
    chain.writable.write(ram, 0, &header.encode())?;
    rx.push_used(ram, chain.head, header.len.saturating_add(44))
}
