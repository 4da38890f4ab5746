//! The Runtime API's listener and its bounded set of connections.
//!
//! When all places are taken, a newcomer gets the place of the connection that
//! has been quiet for longest and has no call waiting: a function that opens
//! connections without end takes its own away, never the one its runtime waits on.

use std::io;
use std::net::{SocketAddr, TcpListener};

use super::connection::Connection;
use crate::poller::{Interest, Poller, Token};

/// Most connections at a time.
pub const MAX_CONNECTIONS: u8 = 32;

#[derive(Debug)]
struct Slot {
    connection: Connection,
    watched: Interest,
    /// Nothing is read for the time being.
    paused: bool,
    /// When it was last used, on a clock that counts uses.
    used: u64,
}

/// The listener and the connections.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    slots: Vec<Option<Slot>>,
    uses: u64,
}

impl Server {
    /// Takes a listener and begins to watch it.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn new(listener: TcpListener, poller: &Poller) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        poller.add(&listener, Token::Listener, Interest::READ)?;
        let slots = std::iter::repeat_with(|| None).take(usize::from(MAX_CONNECTIONS));
        Ok(Self {
            listener,
            slots: slots.collect(),
            uses: 0,
        })
    }

    /// Where the runtime finds the API.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts one connection, if one is there, and returns its place.
    ///
    /// # Errors
    /// When the kernel cannot watch it.
    pub fn accept(&mut self, poller: &Poller) -> io::Result<Option<u8>> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            // Whatever went wrong with one connection is its own business.
            Err(_) => return Ok(None),
        };
        let Ok(connection) = Connection::new(stream) else {
            return Ok(None);
        };
        let Some(slot) = self.free_slot() else {
            return Ok(None);
        };
        poller.add(&connection, Token::Connection(slot), Interest::READ)?;
        self.slots[usize::from(slot)] = Some(Slot {
            connection,
            watched: Interest::READ,
            paused: false,
            used: self.uses,
        });
        Ok(Some(slot))
    }

    fn free_slot(&self) -> Option<u8> {
        let rank = |slot: &Option<Slot>| match slot {
            None => Some((0, 0)),
            Some(slot) if slot.connection.is_waiting() || slot.connection.is_streaming() => None,
            Some(slot) if slot.connection.is_idle() => Some((1, slot.used)),
            Some(slot) => Some((2, slot.used)),
        };
        let ranked = (0..MAX_CONNECTIONS).zip(&self.slots);
        let ranked = ranked.filter_map(|(index, slot)| rank(slot).map(|rank| (rank, index)));
        ranked.min().map(|(_, index)| index)
    }

    /// The connection at a place, if there is one.
    pub fn get(&mut self, slot: u8) -> Option<&mut Connection> {
        self.uses += 1;
        let entry = self.slots.get_mut(usize::from(slot))?.as_mut()?;
        entry.used = self.uses;
        Some(&mut entry.connection)
    }

    /// Ends the connection at a place.
    pub fn close(&mut self, slot: u8) {
        if let Some(entry) = self.slots.get_mut(usize::from(slot)) {
            *entry = None;
        }
    }

    /// Whether some client is in the middle of a call.
    #[must_use]
    pub fn is_hearing(&self) -> bool {
        let mut connections = self.slots.iter().flatten();
        connections.any(|slot| slot.connection.is_hearing())
    }

    /// Reads from a connection no more, or again: its sender waits meanwhile.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn pause(&mut self, slot: u8, paused: bool, poller: &Poller) -> io::Result<()> {
        match self.slots.get_mut(usize::from(slot)) {
            Some(Some(entry)) => {
                entry.paused = paused;
                entry.watch(slot, poller)
            }
            _ => Ok(()),
        }
    }

    /// Sends what a connection has queued and watches for room if there is more.
    /// Returns whether the connection lives on.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn flush(&mut self, slot: u8, poller: &Poller) -> io::Result<bool> {
        let entry = self.slots.get_mut(usize::from(slot));
        let Some(entry) = entry.and_then(Option::as_mut) else {
            return Ok(false);
        };
        if entry.connection.flush().is_err() || entry.connection.is_finished() {
            return Ok(false);
        }
        entry.watch(slot, poller)?;
        Ok(true)
    }
}

impl Slot {
    fn watch(&mut self, slot: u8, poller: &Poller) -> io::Result<()> {
        let interest = Interest {
            read: !self.paused,
            write: self.connection.has_output(),
        };
        if interest != self.watched {
            poller.change(&self.connection, Token::Connection(slot), interest)?;
            self.watched = interest;
        }
        Ok(())
    }
}
