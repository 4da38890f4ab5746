//! The vsock device as its transport sees it.

use super::hosts::FIRST_CALL_PORT;
use super::hub::Hub;
use super::resets::Resets;
use super::table::Table;
use super::{RX, TX, VsockV1};
use crate::memory::GuestRam;
use crate::poll::{DevicePoll, HostFd, Ready};
use crate::virtio::queue::{VirtQueue, on_queue};
use crate::virtio::{
    COMMON_FEATURES, DeviceError, DeviceRestoreError, Progress, VirtioDevice, read_config_bytes,
};

const DEVICE_ID: u32 = 19;
const QUEUE_SIZE: u16 = 128;
const EVENT_QUEUE_SIZE: u16 = 64;

/// The vsock device.
#[derive(Debug)]
pub struct Vsock {
    pub(super) poll: DevicePoll,
    /// The last number that was given to a connection or a host descriptor.
    pub(super) last_id: u64,
    pub(super) table: Table,
    pub(super) resets: Resets,
    /// A host end for the channel that the guest has not opened yet, and its number.
    pub(super) waiting: Option<(u64, HostFd)>,
    pub(super) hub: Option<Hub>,
    /// The next port that a connection of the host comes from.
    pub(super) next_call_port: u32,
    /// Payload goes before what is owed, this time.
    pub(super) payload_first: bool,
    /// There is something to send, and no buffer for it.
    pub(super) rx_starved: bool,
    /// Too many resets wait: packets of the guest wait in their queue.
    pub(super) tx_stalled: bool,
}

impl Vsock {
    /// A device without connections, whose host ends are waited for by `poll`.
    #[must_use]
    pub fn new(poll: DevicePoll) -> Self {
        Self {
            poll,
            last_id: 0,
            table: Table::default(),
            resets: Resets::default(),
            waiting: None,
            hub: None,
            next_call_port: FIRST_CALL_PORT,
            payload_first: false,
            rx_starved: false,
            tx_stalled: false,
        }
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

    const QUEUE_SIZES: &'static [u16] = &[QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE];

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        // Without feature bits of its own the device serves streams (5.10.3).
        COMMON_FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(
            &u64::from(snapback_proto::GUEST_CID).to_le_bytes(),
            offset,
            data,
        );
    }

    fn activate(&mut self, _features: u64) {
        self.table.touch_all();
        self.rearm();
    }

    fn reset(&mut self) {
        // The hub and the host end for a channel to come stay: a driver resets its
        // device before it first uses it.
        self.drop_connections();
        *self = Self {
            last_id: self.last_id,
            waiting: self.waiting.take(),
            hub: self.hub.take(),
            ..Self::new(self.poll.clone())
        };
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
        if self.rearm() {
            progress = Progress::More;
        }
        Ok(progress)
    }

    fn host_ready(
        &mut self,
        ready: &[Ready],
        queues: &mut [VirtQueue],
        ram: &GuestRam,
    ) -> Result<Progress, DeviceError> {
        for ready in ready {
            self.attend(ready);
        }
        let mut progress = self.send_queue(queues, ram)?;
        if self.rearm() || (self.tx_stalled && !self.rx_starved) {
            progress = Progress::More;
        }
        Ok(progress)
    }

    fn mute(&mut self) {
        self.disarm();
    }

    fn is_quiet(&self) -> bool {
        let channel = self.table.channel().and_then(|key| self.table.get(key));
        !self.tx_stalled
            && channel.is_none_or(|channel| channel.is_quiet())
            && self.table.iter().all(|(_, known)| known.pending.is_empty())
    }

    fn save(&self) -> VsockV1 {
        self.save_connections()
    }

    fn restore(&mut self, state: &VsockV1) -> Result<(), DeviceRestoreError> {
        // Every host end belongs to the lease that is over, also one that waits.
        *self = Self {
            last_id: self.last_id,
            ..Self::new(self.poll.clone())
        };
        self.restore_connections(state)
    }
}
