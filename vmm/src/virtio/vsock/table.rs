//! All connections, and whose turn it is.

use std::collections::BTreeMap;

use super::connection::{Connection, Key};
use super::stage::Stage;
use super::{BUF_ALLOC, LARGE_CONNECTIONS, MAX_CONNECTIONS, MAX_OPENING, SMALL_BUF_ALLOC};
use crate::poll::HostFd;

/// Keys in the order in which they came.
#[derive(Debug, Default)]
struct Turns {
    next: u64,
    waiting: BTreeMap<u64, Key>,
}

impl Turns {
    fn push(&mut self, key: Key) -> u64 {
        let turn = self.next;
        self.next += 1;
        self.waiting.insert(turn, key);
        turn
    }

    fn first(&self) -> Option<Key> {
        self.waiting.first_key_value().map(|(_, key)| *key)
    }

    fn remove(&mut self, turn: Option<u64>) {
        if let Some(turn) = turn {
            self.waiting.remove(&turn);
        }
    }
}

/// The connections of a device.
#[derive(Debug, Default)]
pub(super) struct Table {
    by_key: BTreeMap<Key, Connection>,
    by_id: BTreeMap<u64, Key>,
    /// Connections that are not open yet.
    opening: usize,
    /// Connections with the large promise, the channel's left out.
    large: usize,
    /// Those that owe the guest a packet.
    owing: Turns,
    /// Those whose host end may have something for the guest.
    readers: Turns,
    /// Those whose interest may have changed.
    touched: Vec<Key>,
}

impl Table {
    /// Adds a connection; the key is free.
    pub(super) fn insert(&mut self, key: Key, connection: Connection) {
        self.remove(key);
        self.by_id.insert(connection.id, key);
        self.opening += usize::from(connection.stage != Stage::Open);
        self.large += usize::from(is_large(key, &connection));
        self.by_key.insert(key, connection);
        self.touch(key);
    }

    /// Takes a connection out; its host socket closes with it.
    pub(super) fn remove(&mut self, key: Key) -> Option<Connection> {
        let connection = self.by_key.remove(&key)?;
        self.by_id.remove(&connection.id);
        self.opening -= usize::from(connection.stage != Stage::Open);
        self.large -= usize::from(is_large(key, &connection));
        self.owing.remove(connection.owing_turn);
        self.readers.remove(connection.reader_turn);
        Some(connection)
    }

    pub(super) fn get(&self, key: Key) -> Option<&Connection> {
        self.by_key.get(&key)
    }

    /// The connection, to be changed.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Connection> {
        self.touch(key);
        self.by_key.get_mut(&key)
    }

    /// Both ends of a connection are there.
    pub(super) fn open(&mut self, key: Key) {
        if let Some(connection) = self.get_mut(key)
            && connection.stage != Stage::Open
        {
            connection.stage = Stage::Open;
            self.opening -= 1;
        }
    }

    /// Gives a connection its host end, which has the number `id`.
    pub(super) fn give_host(&mut self, key: Key, id: u64, host: HostFd) {
        let Some(connection) = self.get_mut(key) else {
            return;
        };
        let old = std::mem::replace(&mut connection.id, id);
        connection.host = Some(host);
        self.by_id.remove(&old);
        self.by_id.insert(id, key);
    }

    /// The connection with this number.
    pub(super) fn key_of(&self, id: u64) -> Option<Key> {
        self.by_id.get(&id).copied()
    }

    /// The invocation channel's connection.
    pub(super) fn channel(&self) -> Option<Key> {
        let port = snapback_proto::CHANNEL_PORT;
        let at = |guest_port| Key {
            host_port: port,
            guest_port,
        };
        let mut channels = self.by_key.range(at(0)..=at(u32::MAX));
        channels.next().map(|(key, _)| *key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &Connection)> {
        self.by_key
            .iter()
            .map(|(key, connection)| (*key, connection))
    }

    pub(super) fn hosts_mut(&mut self) -> impl Iterator<Item = &mut HostFd> {
        let connections = self.by_key.values_mut();
        connections.filter_map(|connection| connection.host.as_mut())
    }

    /// Whether one more can be opened.
    pub(super) fn has_room(&self) -> bool {
        self.by_key.len() < MAX_CONNECTIONS && self.opening < MAX_OPENING
    }

    /// The room to promise to the next connection.
    pub(super) fn promise(&self) -> u32 {
        if self.large < LARGE_CONNECTIONS {
            BUF_ALLOC
        } else {
            SMALL_BUF_ALLOC
        }
    }

    /// Gives the connection a turn to send, when it owes a packet.
    pub(super) fn queue_owed(&mut self, key: Key) {
        if let Some(connection) = self.by_key.get_mut(&key)
            && connection.owing_turn.is_none()
            && connection.next_owed().is_some()
        {
            connection.owing_turn = Some(self.owing.push(key));
        }
    }

    /// The connection whose turn it is to send a packet that it owes.
    pub(super) fn first_owing(&mut self) -> Option<(Key, u16, u32)> {
        while let Some(key) = self.owing.first() {
            let connection = self.by_key.get_mut(&key)?;
            if let Some((op, flags)) = connection.next_owed() {
                return Some((key, op, flags));
            }
            self.owing.remove(connection.owing_turn.take());
        }
        None
    }

    /// It had its turn; another one follows if it owes more.
    pub(super) fn had_turn_to_send(&mut self, key: Key) {
        if let Some(connection) = self.by_key.get_mut(&key) {
            self.owing.remove(connection.owing_turn.take());
        }
        self.queue_owed(key);
    }

    /// Gives the connection a turn to be read, when there can be something.
    pub(super) fn queue_reader(&mut self, key: Key) {
        if let Some(connection) = self.by_key.get_mut(&key)
            && connection.reader_turn.is_none()
            && connection.reads_host()
        {
            connection.reader_turn = Some(self.readers.push(key));
            self.touch(key);
        }
    }

    /// The connection whose turn it is to be read.
    pub(super) fn first_reader(&self) -> Option<Key> {
        self.readers.first()
    }

    /// It had its turn.
    pub(super) fn had_turn_to_be_read(&mut self, key: Key) {
        if let Some(connection) = self.by_key.get_mut(&key) {
            self.readers.remove(connection.reader_turn.take());
            self.touch(key);
        }
    }

    /// Every connection's interest is to be looked at.
    pub(super) fn touch_all(&mut self) {
        let keys: Vec<Key> = self.by_key.keys().copied().collect();
        keys.into_iter().for_each(|key| self.touch(key));
    }

    /// Says for each host end that changed what to wait for, and returns those that
    /// cannot be waited for.
    pub(super) fn rearm(&mut self) -> Vec<Key> {
        let mut failed = Vec::new();
        for key in std::mem::take(&mut self.touched) {
            let Some(connection) = self.by_key.get_mut(&key) else {
                continue;
            };
            connection.touched = false;
            let interest = connection.interest();
            if let Some(host) = &mut connection.host
                && host.want(interest).is_err()
            {
                failed.push(key);
            }
        }
        failed
    }

    fn touch(&mut self, key: Key) {
        if let Some(connection) = self.by_key.get_mut(&key)
            && !connection.touched
        {
            connection.touched = true;
            self.touched.push(key);
        }
    }
}

#[cfg(test)]
impl Table {
    /// Panics when the parts contradict each other or a bound is exceeded.
    pub(super) fn assert_sound(&self) {
        let opening = self.iter().filter(|(_, c)| c.stage != Stage::Open).count();
        let large = self.iter().filter(|(key, c)| is_large(*key, c)).count();
        assert_eq!((self.opening, self.large), (opening, large));
        assert!(self.by_key.len() <= MAX_CONNECTIONS && opening <= MAX_OPENING);
        assert!(large <= LARGE_CONNECTIONS);
        let ids: BTreeMap<u64, Key> = self.iter().map(|(key, c)| (c.id, key)).collect();
        assert_eq!(self.by_id, ids);
        for (turns, of) in [
            (
                &self.owing,
                (|c| c.owing_turn) as fn(&Connection) -> Option<u64>,
            ),
            (&self.readers, |c| c.reader_turn),
        ] {
            let held: BTreeMap<u64, Key> = self
                .iter()
                .filter_map(|(key, c)| Some((of(c)?, key)))
                .collect();
            assert_eq!(turns.waiting, held);
        }
        for (key, c) in self.iter() {
            assert!(c.pending.len() <= c.credit.buf_alloc as usize, "{key:?}");
            assert!(c.owed == super::connection::Owed::default() || c.owing_turn.is_some());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }
}

fn is_large(key: Key, connection: &Connection) -> bool {
    key.host_port != snapback_proto::CHANNEL_PORT && connection.credit.buf_alloc == BUF_ALLOC
}
