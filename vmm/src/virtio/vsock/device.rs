//! The vsock device: the connection table, and its two sides.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;

use super::connection::{Connection, Key};
use super::{RX, TX, VsockV1, state};
use crate::memory::GuestRam;
use crate::poll::{DevicePoll, HostFd, Interest, Ready};
use crate::virtio::queue::{VirtQueue, on_queue};
use crate::virtio::{
    COMMON_FEATURES, DeviceError, DeviceRestoreError, Progress, VirtioDevice, read_config_bytes,
};

const DEVICE_ID: u32 = 19;
const QUEUE_SIZE: u16 = 128;
const EVENT_QUEUE_SIZE: u16 = 64;

/// Answers that may wait for buffers before the guest's packets have to wait too.
pub(super) const OUTBOX_SIZE: usize = 128;

/// A packet without payload on its way to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Control {
    pub key: Key,
    /// Whom the guest spoke to; not always the host.
    pub host_cid: u64,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
}

/// The vsock device.
#[derive(Debug)]
pub struct Vsock {
    poll: DevicePoll,
    /// The next number of a host descriptor.
    next_id: u64,
    pub(super) connections: BTreeMap<Key, Connection>,
    /// Answers, first in first out.
    pub(super) outbox: VecDeque<Control>,
    /// A host end for the channel that the guest has not opened yet.
    pub(super) waiting: Option<HostFd>,
    /// The connection that was read last, so that all have their turn.
    pub(super) last_served: Option<Key>,
    /// There is something to send, and no buffer for it.
    pub(super) rx_starved: bool,
    /// The outbox is full: packets of the guest wait in their queue.
    pub(super) tx_stalled: bool,
}

impl Vsock {
    /// A device without connections, whose host ends are waited for by `poll`.
    #[must_use]
    pub fn new(poll: DevicePoll) -> Self {
        Self {
            poll,
            next_id: 0,
            connections: BTreeMap::new(),
            outbox: VecDeque::new(),
            waiting: None,
            last_served: None,
            rx_starved: false,
            tx_stalled: false,
        }
    }

    /// Drops all connections and all host ends but `waiting`.
    fn clear(&mut self, waiting: Option<HostFd>) {
        *self = Self {
            next_id: self.next_id,
            waiting,
            ..Self::new(self.poll.clone())
        };
    }

    /// Gives the channel a host end: the connection that exists, or else the next
    /// one that the guest opens.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn attach_channel(&mut self, socket: OwnedFd) -> io::Result<()> {
        let socket = self.poll.adopt(socket, self.next_id)?;
        self.next_id += 1;
        let Some(key) = self.channel() else {
            self.waiting = Some(socket);
            return Ok(());
        };
        if let Some(connection) = self.connections.get_mut(&key) {
            if connection.host.is_some() {
                // What waits was meant for the other socket's owner.
                connection.discard_pending();
            }
            connection.host = Some(socket);
            connection.host_idle = false;
            connection.pass_shutdown_on();
        }
        Ok(())
    }

    /// Takes the channel's host end away; the guest is told nothing.
    pub fn detach_channel(&mut self) {
        self.waiting = None;
        if let Some(key) = self.channel()
            && let Some(connection) = self.connections.get_mut(&key)
        {
            connection.host = None;
            connection.discard_pending();
        }
    }

    /// Says for each host end what to wait for. One that cannot be waited for counts
    /// as gone.
    fn update_interests(&mut self) {
        let starved = self.rx_starved;
        let gone = |(key, connection): (&Key, &mut Connection)| {
            let interest = Interest {
                readable: connection.may_read_host() && !starved,
                writable: !connection.pending.is_empty(),
            };
            let failed = connection.host.as_mut()?.want(interest).is_err();
            failed.then_some(*key)
        };
        let gone: Vec<Key> = self.connections.iter_mut().filter_map(gone).collect();
        for key in gone {
            self.reset_connection(key);
        }
    }

    /// The invocation channel's connection.
    pub(super) fn channel(&self) -> Option<Key> {
        let port = snapback_proto::CHANNEL_PORT;
        let first = Key {
            host_port: port,
            guest_port: 0,
        };
        let last = Key {
            host_port: port,
            guest_port: u32::MAX,
        };
        self.connections
            .range(first..=last)
            .next()
            .map(|(key, _)| *key)
    }

    pub(super) fn is_orphan(&self, key: Key) -> bool {
        self.connections
            .get(&key)
            .is_some_and(|connection| connection.orphan)
    }

    pub(super) fn first_orphan(&self) -> Option<Key> {
        self.connections
            .iter()
            .find(|(_, connection)| connection.orphan)
            .map(|(key, _)| *key)
    }

    /// Whether there is something to tell the guest besides payload.
    pub(super) fn has_due(&self) -> bool {
        !self.outbox.is_empty()
            || self
                .connections
                .values()
                .any(|connection| connection.shutdown_due)
    }

    fn send_queue(
        &mut self,
        queues: &mut [VirtQueue],
        ram: &GuestRam,
    ) -> Result<Progress, DeviceError> {
        on_queue(queues, RX, |rx| self.send_all(rx, ram))
    }

    fn receive_queue(
        &mut self,
        queues: &mut [VirtQueue],
        ram: &GuestRam,
    ) -> Result<Progress, DeviceError> {
        on_queue(queues, TX, |tx| self.receive_all(tx, ram))
    }
}

impl VirtioDevice for Vsock {
    type State = VsockV1;

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        // Without feature bits of its own the device serves streams (5.10.3).
        COMMON_FEATURES
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(
            &u64::from(snapback_proto::GUEST_CID).to_le_bytes(),
            offset,
            data,
        );
    }

    fn activate(&mut self, _features: u64) {
        self.update_interests();
    }

    fn reset(&mut self) {
        // The host end for a channel to come stays: a driver resets its device
        // before it first uses it.
        let waiting = self.waiting.take();
        self.clear(waiting);
    }

    fn process(
        &mut self,
        index: usize,
        queues: &mut [VirtQueue],
        ram: &GuestRam,
    ) -> Result<Progress, DeviceError> {
        let mut progress = Progress::Done;
        if index == RX {
            progress = self.send_queue(queues, ram)?;
        }
        if index == TX || (index == RX && self.tx_stalled) {
            let received = self.receive_queue(queues, ram)?;
            let sent = self.send_queue(queues, ram)?;
            // Sending made room for more answers.
            let stalled = self.tx_stalled && !self.rx_starved;
            if stalled || received == Progress::More || sent == Progress::More {
                progress = Progress::More;
            }
        }
        // The event queue only gives us buffers, and we have no events: a transport
        // reset would end the channel too.
        self.update_interests();
        Ok(progress)
    }

    fn host_ready(
        &mut self,
        _ready: &[Ready],
        queues: &mut [VirtQueue],
        ram: &GuestRam,
    ) -> Result<Progress, DeviceError> {
        let keys: Vec<Key> = self.connections.keys().copied().collect();
        for key in keys {
            match self.connections.get_mut(&key).map(Connection::flush) {
                Some(Err(_)) => self.reset_connection(key),
                _ => self.close_when_done(key),
            }
        }
        let progress = self.send_queue(queues, ram)?;
        self.update_interests();
        Ok(progress)
    }

    fn mute(&mut self) {
        let hosts = self.connections.values_mut();
        for host in hosts.filter_map(|connection| connection.host.as_mut()) {
            // At worst it is reported again.
            let _ = host.want(Interest::NONE);
        }
    }

    fn is_quiet(&self) -> bool {
        self.outbox.is_empty()
            && !self.tx_stalled
            && self.connections.values().all(Connection::is_quiet)
    }

    fn save(&self) -> VsockV1 {
        let connections = self.connections.iter();
        VsockV1 {
            connections: connections
                .map(|(key, known)| state::save(*key, known))
                .collect(),
        }
    }

    fn restore(&mut self, state: &VsockV1) -> Result<(), DeviceRestoreError> {
        let channel_port = snapback_proto::CHANNEL_PORT;
        state::check(state, channel_port)?;
        // Every host end belongs to the lease that is over, also one that waits.
        self.clear(None);
        for saved in &state.connections {
            let key = Key {
                host_port: saved.host_port,
                guest_port: saved.guest_port,
            };
            let orphan = key.host_port != channel_port;
            self.connections
                .insert(key, Connection::restored(saved, orphan));
        }
        Ok(())
    }
}
