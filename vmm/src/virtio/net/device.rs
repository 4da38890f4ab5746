//! The net device: what it offers, and what it waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::{HEADER, MAX_LARGE, MAX_PLAIN, NetV1, RX, TX};
use crate::memory::GuestRam;
use crate::poll::{DevicePoll, HostFd, Interest, Ready};
use crate::sys::tap::{self, Offload};
use crate::virtio::queue::{VirtQueue, on_queue};
use crate::virtio::{
    COMMON_FEATURES, DeviceError, DeviceRestoreError, Progress, VirtioDevice, read_config_bytes,
};

const DEVICE_ID: u32 = 1;
const QUEUE_SIZE: u16 = 256;

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_HOST_TSO4: u64 = 1 << 11;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;

/// Status in the configuration space: there is a link.
const LINK_UP: u16 = 1;
/// Most frames that are dropped in one go: many times what a tap queues. With more,
/// somebody sends faster than they can be read.
const MAX_QUEUED: u32 = 1 << 16;

const _: () = assert!(HEADER == 12 && MAX_PLAIN < MAX_LARGE);

/// Why a descriptor cannot be the net device's tap.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is no tap, or cannot be set up.
    #[error("the tap cannot be set up")]
    Tap(#[source] io::Error),
    /// Its frames have no virtio-net header.
    #[error("the tap moves frames without a virtio-net header")]
    NoHeader,
}

/// How the tap is told what its reader takes over.
pub(crate) type SetOffload = fn(BorrowedFd<'_>, Offload) -> io::Result<()>;

/// The net device.
#[derive(Debug)]
pub struct Net {
    pub(super) tap: HostFd,
    set_offload: SetOffload,
    /// What the tap was told last.
    offload: Offload,
    mac: [u8; 6],
    /// A frame may lie in several chains.
    pub(super) mergeable: bool,
    /// Bytes that have to be free before a frame is read.
    pub(super) room: u64,
    /// There were no buffers for a frame, or the tap is gone: wait for the driver.
    pub(super) rx_starved: bool,
    /// A frame waits for the tap.
    pub(super) tx_blocked: bool,
    /// The tap could not be made ready for this driver.
    broken: Option<Errno>,
}

impl Net {
    /// A device on `tap`, whose guest has the address `mac`.
    ///
    /// # Errors
    /// [`OpenError`] when the descriptor is no tap of the right kind.
    pub fn open(tap: OwnedFd, mac: [u8; 6], poll: &DevicePoll) -> Result<Self, OpenError> {
        if !tap::has_header(tap.as_fd()).map_err(OpenError::Tap)? {
            return Err(OpenError::NoHeader);
        }
        let header = u8::try_from(HEADER).unwrap_or(u8::MAX);
        tap::set_header_len(tap.as_fd(), header).map_err(OpenError::Tap)?;
        tap::set_offload(tap.as_fd(), Offload::default()).map_err(OpenError::Tap)?;
        Self::on(tap, mac, poll, tap::set_offload).map_err(OpenError::Tap)
    }

    /// A device on a descriptor that moves one frame with its header per call.
    pub(crate) fn on(
        tap: OwnedFd,
        mac: [u8; 6],
        poll: &DevicePoll,
        set_offload: SetOffload,
    ) -> io::Result<Self> {
        Ok(Self {
            // The only descriptor of its device, for life.
            tap: poll.adopt(tap, 0)?,
            set_offload,
            offload: Offload::default(),
            mac,
            mergeable: false,
            room: MAX_PLAIN,
            rx_starved: false,
            tx_blocked: false,
            broken: None,
        })
    }

    /// Drops the frames that the tap has queued.
    ///
    /// # Errors
    /// When the tap cannot be read, or frames come faster than they are dropped.
    pub fn drop_queued(&self) -> Result<(), Errno> {
        let mut start = [0_u8; 64];
        for _ in 0..MAX_QUEUED {
            // The rest of a frame that is read in part is dropped by the kernel.
            match rustix::io::read(&self.tap, &mut start) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Err(Errno::NOBUFS)
    }

    /// Makes the tap ready for a driver that accepted `features`.
    fn prepare(&mut self, features: u64) -> Result<(), Errno> {
        let has = |feature| features & feature != 0;
        let offload = Offload {
            checksum: has(F_GUEST_CSUM),
            tso4: has(F_GUEST_TSO4),
        };
        if offload != self.offload {
            let told = (self.set_offload)(self.tap.as_fd(), offload);
            told.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            self.offload = offload;
        }
        // After that: a frame for the driver before may be too large for this one.
        self.drop_queued()
    }

    fn update_interest(&mut self) -> Result<(), DeviceError> {
        let interest = Interest {
            readable: !self.rx_starved,
            writable: self.tx_blocked,
            hangup: false,
        };
        self.tap.want(interest).map_err(DeviceError::Host)
    }

    fn check(&self) -> Result<(), DeviceError> {
        match self.broken {
            None => Ok(()),
            Some(error) => Err(DeviceError::Host(error.into())),
        }
    }
}

impl VirtioDevice for Net {
    type State = NetV1;

    const QUEUE_SIZES: &'static [u16] = &[QUEUE_SIZE, QUEUE_SIZE];

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
            | F_CSUM
            | F_GUEST_CSUM
            | F_MAC
            | F_GUEST_TSO4
            | F_HOST_TSO4
            | F_MRG_RXBUF
            | F_STATUS
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = [&self.mac[..], &LINK_UP.to_le_bytes()].concat();
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, features: u64) {
        self.mergeable = features & F_MRG_RXBUF != 0;
        let large = features & F_GUEST_TSO4 != 0;
        self.room = if large { MAX_LARGE } else { MAX_PLAIN };
        self.broken = self.prepare(features).err();
        // What cannot be waited for now is tried again when the driver has work.
        let _ = self.update_interest();
    }

    fn reset(&mut self) {
        self.rx_starved = false;
        self.tx_blocked = false;
        self.broken = None;
    }

    fn process(
        &mut self,
        index: usize,
        queues: &mut [VirtQueue],
        ram: &GuestRam,
    ) -> Result<Progress, DeviceError> {
        self.check()?;
        let mut progress = Progress::Done;
        if index == RX {
            self.rx_starved = false;
            on_queue(queues, RX, |rx| self.receive(rx, ram))?;
        } else if !self.tx_blocked {
            progress = on_queue(queues, TX, |tx| self.send(tx, ram))?;
        }
        self.update_interest()?;
        Ok(progress)
    }

    fn host_ready(
        &mut self,
        ready: &[Ready],
        queues: &mut [VirtQueue],
        ram: &GuestRam,
    ) -> Result<Progress, DeviceError> {
        self.check()?;
        if ready.iter().any(|ready| ready.readable) && !self.rx_starved {
            on_queue(queues, RX, |rx| self.receive(rx, ram))?;
        }
        if ready.iter().any(|ready| ready.writable) && self.tx_blocked {
            let progress = on_queue(queues, TX, |tx| self.send(tx, ram))?;
            // What is left at the bound waits as if for the tap, which is ready.
            self.tx_blocked |= progress == Progress::More;
        }
        self.update_interest()?;
        Ok(Progress::Done)
    }

    fn mute(&mut self) {
        // At worst it is reported again.
        let _ = self.tap.want(Interest::NONE);
    }

    fn is_quiet(&self) -> bool {
        !self.tx_blocked
    }

    fn save(&self) -> NetV1 {
        NetV1 { mac: self.mac }
    }

    fn restore(&mut self, state: &NetV1) -> Result<(), DeviceRestoreError> {
        if state.mac != self.mac {
            return Err(DeviceRestoreError::Address {
                snapshot: state.mac,
                machine: self.mac,
            });
        }
        self.broken
            .map_or(Ok(()), |error| Err(DeviceRestoreError::Tap(error)))
    }
}
