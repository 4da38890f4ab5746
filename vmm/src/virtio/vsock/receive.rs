//! Packets from the guest (section 5.10.6).

use snapback_proto::hub::HubRequest;
use vm_memory::Permissions;

use super::BUF_ALLOC;
use super::connection::{Connection, Key};
use super::credit::Credit;
use super::device::Vsock;
use super::packet::{
    HEADER_LEN, HEADER_SIZE, HOST_CID, Header, OP_REQUEST, OP_RST, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::stage::{Action, Stage};
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
            if self.resets.is_full() {
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
        let key = Key::of(&header);
        let spoken_of = header.kind == TYPE_STREAM && header.dst_cid == HOST_CID;
        if let Some(stage) = self.stage_of(key).filter(|_| spoken_of) {
            return self.receive_known(key, stage, &header, chain, ram);
        }
        // A reset gets no answer, or both ends would go on for ever. And a guest that
        // has not heard of a connection's end yet will.
        let unanswered = header.op == OP_RST || (spoken_of && self.resets.contains(key));
        if unanswered {
            return Ok(());
        }
        if !(spoken_of && header.op == OP_REQUEST && self.connect(key, &header)) {
            self.resets.refuse(&header);
        }
        Ok(())
    }

    fn stage_of(&self, key: Key) -> Option<Stage> {
        self.table.get(key).map(|connection| connection.stage)
    }

    /// A packet of a connection that there is.
    fn receive_known(
        &mut self,
        key: Key,
        stage: Stage,
        header: &Header,
        chain: &Chain,
        ram: &GuestRam,
    ) -> Result<(), QueueError> {
        let action = stage.on_packet(header.op);
        if matches!(action, Action::Forget | Action::Reset) {
            match action {
                Action::Forget => self.forget(key),
                _ => self.reset_connection(key),
            }
            return Ok(());
        }
        let Some(connection) = self.table.get_mut(key) else {
            return Ok(());
        };
        let had_room = connection.credit.send_room() > 0;
        if connection.credit.hear(header).is_err() {
            self.reset_connection(key);
            return Ok(());
        }
        let has_room = connection.credit.send_room() > 0;
        match action {
            Action::Payload => self.receive_payload(key, header, chain, ram)?,
            Action::Shutdown => connection.guest_ends(header.flags),
            Action::TellCredit => connection.owed.credit = true,
            Action::Establish => self.establish(key, stage),
            Action::Hear | Action::Forget | Action::Reset => {}
        }
        self.table.queue_owed(key);
        if !had_room && has_room {
            self.table.queue_reader(key);
        }
        self.close_when_done(key);
        Ok(())
    }

    /// The guest took a connection that the hub had asked for.
    fn establish(&mut self, key: Key, stage: Stage) {
        self.table.open(key);
        if let Some(connection) = self.table.get_mut(key) {
            // It cannot have been asked before it was asked; but a guest can guess.
            connection.owed.open = false;
        }
        if let Stage::Calling(id) = stage {
            self.tell_hub(HubRequest::Connected { id });
        }
        self.table.queue_reader(key);
    }

    /// The guest asks for a connection. Whether it may get one.
    fn connect(&mut self, key: Key, header: &Header) -> bool {
        let is_channel = key.host_port == snapback_proto::CHANNEL_PORT;
        let promise = if is_channel {
            BUF_ALLOC
        } else {
            self.table.promise()
        };
        let mut credit = Credit::new(promise);
        if !self.table.has_room() || credit.hear(header).is_err() {
            return false;
        }
        if is_channel {
            return self.connect_channel(key, credit);
        }
        if self.hub.as_ref().is_none_or(super::hub::Hub::is_slow) {
            return false;
        }
        let id = self.next_id();
        self.table
            .insert(key, Connection::new(id, Stage::Asked, credit));
        // A hub that is lost over this resets the connection again.
        self.tell_hub(HubRequest::Connect {
            id,
            guest_port: key.guest_port,
            host_port: key.host_port,
        });
        true
    }

    /// The guest opens the channel, which there is once.
    fn connect_channel(&mut self, key: Key, credit: Credit) -> bool {
        let free = self.table.channel().is_none();
        let Some((id, host)) = self.waiting.take_if(|_| free) else {
            return false;
        };
        let mut connection = Connection::new(id, Stage::Open, credit);
        connection.host = Some(host);
        connection.owed.open = true;
        self.table.insert(key, connection);
        self.table.queue_owed(key);
        true
    }

    fn receive_payload(
        &mut self,
        key: Key,
        header: &Header,
        chain: &Chain,
        ram: &GuestRam,
    ) -> Result<(), QueueError> {
        let Some(connection) = self.table.get_mut(key) else {
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
        if connection.deliver(&payload, header.len)?.is_err() {
            self.reset_connection(key);
        }
        Ok(())
    }
}
