//! Resets that the guest is still to be told of: of connections that have ended, and
//! of packets that belonged to none.

use std::collections::{BTreeSet, VecDeque};

use super::connection::Key;
use super::packet::{HOST_CID, Header, TYPE_STREAM};

/// Resets that may wait for buffers before the guest's packets have to wait too.
pub(super) const MAX_WAITING: usize = 128;

/// One reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reset {
    pub key: Key,
    /// Whom the guest spoke to; not always the host.
    pub host_cid: u64,
    /// What kind of socket it spoke of.
    pub kind: u16,
}

/// Resets, first in first out. A connection is reset once.
#[derive(Debug, Default)]
pub(super) struct Resets {
    waiting: VecDeque<Reset>,
    connections: BTreeSet<Key>,
}

impl Resets {
    /// The guest is to hear that there is no connection `key`.
    pub(super) fn push(&mut self, key: Key) {
        if self.connections.insert(key) {
            self.waiting.push_back(Reset {
                key,
                host_cid: HOST_CID,
                kind: TYPE_STREAM,
            });
        }
    }

    /// A packet is answered in the words that it used.
    pub(super) fn refuse(&mut self, header: &Header) {
        let reset = Reset {
            key: Key::of(header),
            host_cid: header.dst_cid,
            kind: header.kind,
        };
        if (reset.host_cid, reset.kind) == (HOST_CID, TYPE_STREAM) {
            self.push(reset.key);
        } else {
            self.waiting.push_back(reset);
        }
    }

    /// Whether the guest still believes in a connection `key` that is gone.
    pub(super) fn contains(&self, key: Key) -> bool {
        self.connections.contains(&key)
    }

    pub(super) fn first(&self) -> Option<Reset> {
        self.waiting.front().copied()
    }

    /// The first one was told.
    pub(super) fn pop(&mut self) {
        if let Some(reset) = self.waiting.pop_front()
            && (reset.host_cid, reset.kind) == (HOST_CID, TYPE_STREAM)
        {
            self.connections.remove(&reset.key);
        }
    }

    /// Whether the guest's packets have to wait.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The connections among them.
    pub(super) fn connections(&self) -> impl Iterator<Item = Key> {
        self.connections.iter().copied()
    }
}
