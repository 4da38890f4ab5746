//! The host's side: sockets that are handed over, are ready, or end; and the hub.

use std::io;
use std::os::fd::OwnedFd;

use snapback_proto::hub::{HubCommand, HubRequest};

use super::connection::{Connection, HostGone, Key};
use super::credit::Credit;
use super::device::Vsock;
use super::hub::Hub;
use super::packet::SHUTDOWN_BOTH;
use super::stage::Stage;
use super::table::Table;
use crate::poll::{HostFd, Ready};

/// Most messages of the hub that are heard at once.
const HUB_BATCH: usize = 16;
/// The ports that connections of the host come from, one after the other.
pub(super) const FIRST_CALL_PORT: u32 = 1 << 30;
const LAST_CALL_PORT: u32 = (1 << 31) - 1;

impl Vsock {
    /// Gives the channel a host end: the connection that exists, or else the next
    /// one that the guest opens.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn attach_channel(&mut self, socket: OwnedFd) -> io::Result<()> {
        let (id, host) = self.adopt(socket)?;
        let Some(key) = self.table.channel() else {
            self.waiting = Some((id, host));
            return Ok(());
        };
        if let Some(connection) = self.table.get_mut(key)
            && connection.host.is_some()
        {
            // What waits was meant for the other socket's owner.
            connection.discard_pending();
        }
        self.table.give_host(key, id, host);
        self.flush(key);
        self.table.queue_reader(key);
        Ok(())
    }

    /// Gives the device a hub, in the place of the one that it had.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn attach_hub(&mut self, socket: OwnedFd) -> io::Result<()> {
        let (id, socket) = self.adopt(socket)?;
        self.lose_hub();
        self.hub = Some(Hub::new(id, socket));
        Ok(())
    }

    /// Takes a host's descriptor over, under a number of its own.
    fn adopt(&mut self, fd: OwnedFd) -> io::Result<(u64, HostFd)> {
        let id = self.next_id();
        Ok((id, self.poll.adopt(fd, id)?))
    }

    /// A number that was never used.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Looks at a host end that is ready.
    pub(super) fn attend(&mut self, ready: &Ready) {
        if self.hub.as_ref().is_some_and(|hub| hub.id == ready.id) {
            self.attend_hub();
            return;
        }
        let Some(key) = self.table.key_of(ready.id) else {
            return;
        };
        if ready.writable {
            self.flush(key);
        }
        if let Some(connection) = self.table.get_mut(key)
            && ready.hangup
            && !connection.reads_host()
        {
            connection.host_ends(SHUTDOWN_BOTH);
            self.table.queue_owed(key);
        }
        if ready.readable {
            self.table.queue_reader(key);
        }
    }

    /// Gives a host what waits for it.
    fn flush(&mut self, key: Key) {
        match self.table.get_mut(key).map(Connection::flush) {
            Some(Err(HostGone)) => self.reset_connection(key),
            _ => {
                self.table.queue_owed(key);
                self.close_when_done(key);
            }
        }
    }

    /// Ends a connection that the guest has closed in both directions, once the
    /// host has everything. The guest waits for this answer (section 5.10.6.5).
    pub(super) fn close_when_done(&mut self, key: Key) {
        if self.table.get(key).is_some_and(Connection::is_over) {
            self.reset_connection(key);
        }
    }

    /// Forgets a connection and tells the guest.
    pub(super) fn reset_connection(&mut self, key: Key) {
        self.forget(key);
        self.resets.push(key);
    }

    /// Forgets a connection; its host socket closes. The hub is told if it waits.
    pub(super) fn forget(&mut self, key: Key) {
        if let Some(connection) = self.table.remove(key)
            && let Stage::Calling(id) = connection.stage
        {
            self.tell_hub(HubRequest::Refused { id });
        }
    }

    /// Tells the hub, if there is one.
    pub(super) fn tell_hub(&mut self, request: HubRequest) {
        if self
            .hub
            .as_mut()
            .is_some_and(|hub| hub.say(request).is_err())
        {
            self.lose_hub();
        }
    }

    /// There is no hub any more: nobody answers what it was asked, and nobody wants
    /// what it asked for. Connections that are there stay.
    pub(super) fn lose_hub(&mut self) {
        if self.hub.take().is_none() {
            return;
        }
        let opening = |(key, connection): (Key, &Connection)| {
            (connection.stage != Stage::Open).then_some(key)
        };
        let opening: Vec<Key> = self.table.iter().filter_map(opening).collect();
        for key in opening {
            self.reset_connection(key);
        }
    }

    /// Hears what the agent says.
    fn attend_hub(&mut self) {
        if self.hub.as_mut().is_some_and(|hub| hub.flush().is_err()) {
            self.lose_hub();
        }
        for _ in 0..HUB_BATCH {
            match self.hub.as_mut().map(Hub::hear) {
                Some(Ok(Some((command, stream)))) => self.obey(command, stream),
                Some(Ok(None)) | None => return,
                Some(Err(_)) => return self.lose_hub(),
            }
        }
    }

    fn obey(&mut self, command: HubCommand, stream: Option<OwnedFd>) {
        match command {
            HubCommand::Accept { id } => self.accept(id, stream),
            HubCommand::Refuse { id } => {
                if let Some(key) = self.asked(id) {
                    self.reset_connection(key);
                }
            }
            HubCommand::Connect { id, guest_port } => {
                let called = stream.is_some_and(|stream| self.call(id, guest_port, stream));
                if !called {
                    self.tell_hub(HubRequest::Refused { id });
                }
            }
        }
    }

    /// The connection that the hub was asked for under this number, if it is still
    /// waited for.
    fn asked(&self, id: u64) -> Option<Key> {
        let key = self.table.key_of(id)?;
        (self.table.get(key)?.stage == Stage::Asked).then_some(key)
    }

    /// The host takes a connection of the guest.
    fn accept(&mut self, id: u64, stream: Option<OwnedFd>) {
        let Some(key) = self.asked(id) else { return };
        match stream.map(|stream| self.adopt(stream)) {
            Some(Ok((id, host))) => {
                self.table.give_host(key, id, host);
                self.table.open(key);
                if let Some(connection) = self.table.get_mut(key) {
                    connection.owed.open = true;
                }
                self.table.queue_owed(key);
            }
            _ => self.reset_connection(key),
        }
    }

    /// The host asks for a connection. Whether the guest was asked.
    fn call(&mut self, request: u64, guest_port: u32, stream: OwnedFd) -> bool {
        if !self.table.has_room() || self.resets.is_full() {
            return false;
        }
        let Ok((id, host)) = self.adopt(stream) else {
            return false;
        };
        let key = self.free_key(guest_port);
        let credit = Credit::new(self.table.promise());
        let mut connection = Connection::new(id, Stage::Calling(request), credit);
        connection.host = Some(host);
        connection.owed.open = true;
        self.table.insert(key, connection);
        self.table.queue_owed(key);
        true
    }

    /// A key for a connection to `guest_port` that is not taken. There is one: there
    /// are far more ports than connections.
    fn free_key(&mut self, guest_port: u32) -> Key {
        loop {
            let host_port = self.next_call_port;
            self.next_call_port = match host_port {
                LAST_CALL_PORT => FIRST_CALL_PORT,
                port => port + 1,
            };
            let key = Key {
                host_port,
                guest_port,
            };
            if self.table.get(key).is_none() && !self.resets.contains(key) {
                return key;
            }
        }
    }

    /// Says for every host end what to wait for. One that cannot be waited for
    /// counts as gone. Returns whether that left something to be told to the guest.
    pub(super) fn rearm(&mut self) -> bool {
        let failed = self.table.rearm();
        let any = !failed.is_empty();
        for key in failed {
            self.reset_connection(key);
        }
        let hub = self.hub.as_mut();
        if hub.is_some_and(|hub| hub.rearm(false).is_err()) {
            self.lose_hub();
            return true;
        }
        any
    }

    /// Waits for no host end.
    pub(super) fn disarm(&mut self) {
        for host in self.table.hosts_mut() {
            // At worst it is reported again.
            let _ = host.want(crate::poll::Interest::NONE);
        }
        if let Some(hub) = &mut self.hub {
            let _ = hub.rearm(true);
        }
    }

    /// The driver starts anew: no connection is left. What the hub asked for is
    /// refused.
    pub(super) fn drop_connections(&mut self) {
        let calls: Vec<u64> = self
            .table
            .iter()
            .filter_map(|(_, connection)| match connection.stage {
                Stage::Calling(id) => Some(id),
                _ => None,
            })
            .collect();
        self.table = Table::default();
        for id in calls {
            self.tell_hub(HubRequest::Refused { id });
        }
    }
}
