//! Packets from the guest (section 5.10.6).

use vm_memory::Permissions;

use super::connection::{Connection, Delivery, Key};
use super::device::{Control, Vsock};
use super::packet::{
    HEADER_LEN, HEADER_SIZE, HOST_CID, Header, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST,
    OP_RESPONSE, OP_RST, OP_RW, OP_SHUTDOWN, SHUTDOWN_BOTH, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::{MAX_CONNECTIONS, device};
use crate::memory::GuestRam;
use crate::virtio::Progress;
use crate::virtio::queue::{Chain, QueueError, VirtQueue};

impl Vsock {
    /// Takes packets from the TX queue, as long as there is room for the answers.
    pub(super) fn receive_all(
        &mut self,
        tx: &mut VirtQueue,
        ram: &GuestRam,
    ) -> Result<Progress, QueueError> {
        self.tx_stalled = false;
        for _ in 0..tx.size() {
            if self.outbox.len() >= device::OUTBOX_SIZE {
                // Goes on when the guest has given buffers for the answers.
                self.tx_stalled = true;
                return Ok(Progress::Done);
            }
            let Some(chain) = tx.pop(ram)? else {
                return Ok(Progress::Done);
            };
            self.receive(&chain, ram)?;
            tx.push_used(ram, chain.head, 0)?;
        }
        Ok(Progress::More)
    }

    fn receive(&mut self, chain: &Chain, ram: &GuestRam) -> Result<(), QueueError> {
        if chain.readable.len() < HEADER_LEN {
            return Ok(());
        }
        let mut bytes = [0; HEADER_SIZE];
        chain.readable.read(ram, 0, &mut bytes)?;
        let header = Header::decode(&bytes);
        // Packets in another guest's name are not worth an answer.
        if header.src_cid != u64::from(snapback_proto::GUEST_CID) {
            return Ok(());
        }
        if header.kind != TYPE_STREAM || header.dst_cid != HOST_CID {
            self.refuse(&header);
            return Ok(());
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let Some(connection) = self.connections.get_mut(&key).filter(|known| !known.orphan) else {
            self.receive_unknown(key, &header);
            return Ok(());
        };
        connection.credit.hear(&header);
        match header.op {
            OP_RW => self.receive_payload(key, &header, chain, ram)?,
            OP_SHUTDOWN => {
                connection.guest_shutdown |= header.flags & SHUTDOWN_BOTH;
                connection.pass_shutdown_on();
                self.close_when_done(key);
            }
            OP_CREDIT_UPDATE => {}
            OP_CREDIT_REQUEST => self.answer(key, OP_CREDIT_UPDATE, 0),
            OP_RST => {
                self.connections.remove(&key);
            }
            // A connection cannot be opened twice, and the host opens none.
            _ => self.reset_connection(key),
        }
        Ok(())
    }

    fn receive_unknown(&mut self, key: Key, header: &Header) {
        if header.op != OP_REQUEST || self.is_orphan(key) {
            self.refuse(header);
            return;
        }
        let free = key.host_port == snapback_proto::CHANNEL_PORT
            && self.channel().is_none()
            && self.connections.len() < MAX_CONNECTIONS;
        match self.waiting.take_if(|_| free) {
            Some(host) => {
                self.connections.insert(key, Connection::open(host, header));
                self.answer(key, OP_RESPONSE, 0);
            }
            None => self.refuse(header),
        }
    }

    fn receive_payload(
        &mut self,
        key: Key,
        header: &Header,
        chain: &Chain,
        ram: &GuestRam,
    ) -> Result<(), QueueError> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Ok(());
        };
        let promised = HEADER_LEN + u64::from(header.len);
        let allowed = header.len <= connection.credit.receive_room()
            && connection.guest_shutdown & SHUTDOWN_SEND == 0;
        if !allowed || chain.readable.len() < promised {
            self.reset_connection(key);
            return Ok(());
        }
        if header.len == 0 {
            return Ok(());
        }
        let payload =
            chain
                .readable
                .slices(ram, HEADER_LEN, header.len.into(), Permissions::Read)?;
        if let Delivery::HostGone = connection.deliver(&payload, header.len)? {
            self.reset_connection(key);
        }
        Ok(())
    }

    /// Ends a connection that the guest has closed in both directions, once the
    /// host has everything. The guest waits for this answer (section 5.10.6.5).
    pub(super) fn close_when_done(&mut self, key: Key) {
        let done = self.connections.get(&key).is_some_and(|connection| {
            connection.guest_shutdown == SHUTDOWN_BOTH && connection.pending.is_empty()
        });
        if done {
            self.reset_connection(key);
        }
    }

    /// Forgets a connection and tells the guest. Its host socket closes.
    pub(super) fn reset_connection(&mut self, key: Key) {
        self.connections.remove(&key);
        self.answer(key, OP_RST, 0);
    }

    pub(super) fn answer(&mut self, key: Key, op: u16, flags: u32) {
        self.outbox.push_back(Control {
            key,
            host_cid: HOST_CID,
            kind: TYPE_STREAM,
            op,
            flags,
        });
    }

    /// Answers a packet that belongs to nothing. A reset gets no answer, or both
    /// ends would go on for ever.
    fn refuse(&mut self, header: &Header) {
        if header.op != OP_RST {
            self.outbox.push_back(Control {
                key: Key {
                    host_port: header.dst_port,
                    guest_port: header.src_port,
                },
                host_cid: header.dst_cid,
                kind: header.kind,
                op: OP_RST,
                flags: 0,
            });
        }
    }
}
