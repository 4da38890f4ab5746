//! The connection table in a snapshot.
//!
//! Only the invocation channel lives on. Every other connection stands here by its
//! ports alone: whoever restores the snapshot resets it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::connection::{Connection, Key};
use super::credit::{Credit, MAX_IN_FLIGHT};
use super::device::Vsock;
use super::packet::{SHUTDOWN_BOTH, SHUTDOWN_SEND};
use super::stage::Stage;
use super::{BUF_ALLOC, MAX_CONNECTIONS, resets};
use crate::virtio::DeviceRestoreError;

/// Most resets that can be owed: of all connections twice (those that ended and
/// those that have taken their place), and of packets that belonged to none.
pub(super) const MAX_RESETS: usize = 2 * MAX_CONNECTIONS + resets::MAX_WAITING;

/// The vsock device. Nothing is in flight in a snapshot, so there are no bytes here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockV1 {
    /// The invocation channel's connection.
    pub channel: Option<ChannelV1>,
    /// The connections that the guest believes in and that are to be reset, in the
    /// order of their ports.
    pub resets: Vec<PortsV1>,
}

/// The ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsV1 {
    /// Port on the host.
    pub host_port: u32,
    /// Port in the guest.
    pub guest_port: u32,
}

/// The invocation channel. Counters wrap, as they do on the wire (section 5.10.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelV1 {
    /// Port in the guest.
    pub guest_port: u32,
    /// Bytes that the guest has room for in all.
    pub peer_buf_alloc: u32,
    /// Bytes that the guest has taken, as it last told.
    pub peer_fwd_cnt: u32,
    /// Bytes sent to the guest.
    pub tx_cnt: u32,
    /// Bytes received from the guest, all of them passed on.
    pub rx_cnt: u32,
    /// Bytes passed on, as the guest was last told.
    pub told_fwd_cnt: u32,
    /// The guest was asked for credit and has not answered.
    pub credit_requested: bool,
    /// What the guest said that it will not do any more (shutdown flags).
    pub guest_shutdown: u32,
    /// What the guest was told that the host will not do any more (the same).
    pub host_shutdown: u32,
}

impl ChannelV1 {
    fn key(&self) -> Key {
        Key {
            host_port: snapback_proto::CHANNEL_PORT,
            guest_port: self.guest_port,
        }
    }

    fn is_possible(&self) -> bool {
        let untold = self.rx_cnt.wrapping_sub(self.told_fwd_cnt);
        let in_flight = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        // A guest that closed both directions has no connection any more.
        self.guest_shutdown <= SHUTDOWN_SEND
            && self.host_shutdown <= SHUTDOWN_BOTH
            && untold <= BUF_ALLOC
            && in_flight <= MAX_IN_FLIGHT
    }
}

fn impossible(key: Key) -> DeviceRestoreError {
    DeviceRestoreError::Connection {
        guest_port: key.guest_port,
        host_port: key.host_port,
    }
}

fn check(state: &VsockV1) -> Result<(), DeviceRestoreError> {
    let connections = state.resets.len();
    if connections > MAX_RESETS {
        return Err(DeviceRestoreError::TooManyConnections { connections });
    }
    let channel = state.channel.map(|channel| channel.key());
    if let Some(known) = state.channel.filter(|known| !known.is_possible()) {
        return Err(impossible(known.key()));
    }
    let mut last: Option<Key> = None;
    for ports in &state.resets {
        let key = Key::from(*ports);
        if last.is_some_and(|last| last >= key) || channel == Some(key) {
            return Err(impossible(key));
        }
        last = Some(key);
    }
    Ok(())
}

impl From<PortsV1> for Key {
    fn from(ports: PortsV1) -> Self {
        Self {
            host_port: ports.host_port,
            guest_port: ports.guest_port,
        }
    }
}

impl Vsock {
    pub(super) fn save_connections(&self) -> VsockV1 {
        let channel = self.table.channel();
        let others = self.table.iter().map(|(key, _)| key);
        let others = others.filter(|key| Some(*key) != channel);
        let resets: BTreeSet<Key> = others.chain(self.resets.connections()).collect();
        let saved = channel.and_then(|key| Some((key, self.table.get(key)?)));
        VsockV1 {
            channel: saved.map(|(key, connection)| save_channel(key, connection)),
            resets: resets
                .into_iter()
                .map(|key| PortsV1 {
                    host_port: key.host_port,
                    guest_port: key.guest_port,
                })
                .collect(),
        }
    }

    /// Takes over what a checked state says; the device has no connections.
    pub(super) fn restore_connections(
        &mut self,
        state: &VsockV1,
    ) -> Result<(), DeviceRestoreError> {
        check(state)?;
        if let Some(saved) = &state.channel {
            let credit = Credit::restored(saved, BUF_ALLOC);
            let mut connection = Connection::new(self.next_id(), Stage::Open, credit);
            connection.guest_shutdown = saved.guest_shutdown;
            connection.host_shutdown = saved.host_shutdown;
            self.table.insert(saved.key(), connection);
        }
        for ports in &state.resets {
            self.resets.push((*ports).into());
        }
        Ok(())
    }
}

fn save_channel(key: Key, connection: &Connection) -> ChannelV1 {
    let credit = &connection.credit;
    ChannelV1 {
        guest_port: key.guest_port,
        peer_buf_alloc: credit.peer_buf_alloc,
        peer_fwd_cnt: credit.peer_fwd_cnt,
        tx_cnt: credit.tx_cnt,
        rx_cnt: credit.rx_cnt,
        told_fwd_cnt: credit.told_fwd_cnt,
        credit_requested: credit.requested,
        guest_shutdown: connection.guest_shutdown,
        host_shutdown: connection.host_shutdown,
    }
}
