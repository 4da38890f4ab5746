//! The connection table in a snapshot.

use serde::{Deserialize, Serialize};

use super::connection::{Connection, Key};
use super::{BUF_ALLOC, MAX_CONNECTIONS};
use crate::virtio::DeviceRestoreError;

/// The vsock device. Nothing is in flight in a snapshot, so there are no bytes here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockV1 {
    /// The connections, in the order of their ports.
    pub connections: Vec<ConnectionV1>,
}

/// One connection. Counters wrap, as they do on the wire (section 5.10.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionV1 {
    /// Port in the guest.
    pub guest_port: u32,
    /// Port on the host.
    pub host_port: u32,
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
    /// The guest was told that the host sends no more.
    pub host_shutdown: bool,
}

pub(super) fn check(state: &VsockV1, channel_port: u32) -> Result<(), DeviceRestoreError> {
    let connections = state.connections.len();
    if connections > MAX_CONNECTIONS {
        return Err(DeviceRestoreError::TooManyConnections { connections });
    }
    let mut last: Option<Key> = None;
    let mut channels = 0_u32;
    for connection in &state.connections {
        let key = Key {
            host_port: connection.host_port,
            guest_port: connection.guest_port,
        };
        channels += u32::from(key.host_port == channel_port);
        let untold = connection.rx_cnt.wrapping_sub(connection.told_fwd_cnt);
        // A guest that closed both directions has no connection any more.
        let possible = connection.guest_shutdown < 3
            && untold <= BUF_ALLOC
            && channels <= 1
            && last.is_none_or(|last| last < key);
        if !possible {
            return Err(DeviceRestoreError::Connection {
                guest_port: key.guest_port,
                host_port: key.host_port,
            });
        }
        last = Some(key);
    }
    Ok(())
}

pub(super) fn save(key: Key, connection: &Connection) -> ConnectionV1 {
    let credit = &connection.credit;
    ConnectionV1 {
        guest_port: key.guest_port,
        host_port: key.host_port,
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
