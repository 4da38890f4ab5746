//! Address → device.
//!
//! ```text
//!  vCPU thread ── MMIO and port exits ──┐
//!                                       ├─► Bus ──► Effects (interrupts, reset)
//!  I/O thread ── queues, sockets ───────┘
//! ```
//!
//! One [`Bus`] owns all devices; it lives in a mutex that both threads share. An
//! access returns [`Effects`] and the caller applies them, so no device knows KVM.
//! Reads of what nobody answers return all ones, writes vanish.

mod effects;
pub mod layout;
pub mod parts;
mod state;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::iter::{once, repeat_n};

pub use effects::{Effects, GuestEnd, Lines};
use layout::{
    FIRST_GSI, I8042_COMMAND, I8042_DATA, MAX_VIRTIO, MMIO_BASE, MMIO_WINDOW, MmioSlot, POWER_PORT,
    POWER_PORTS, PVPANIC_PORT, SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS,
};
pub use parts::DevicePart;
pub use state::{BusV1, NotQuiet, RebaseError, RestoreError, TooManyDevices};

use crate::control::HostEnds;
use crate::devices::i8042::I8042;
use crate::devices::serial::Serial;
use crate::devices::{power, pvpanic};
use crate::memory::GuestRam;
use crate::poll::Ready;
use crate::virtio::VirtioDevice as _;
use crate::virtio::block::Block;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::transport::{MmioDevice, Transport};
use crate::virtio::vsock::Vsock;

/// All devices of one machine. The order of its virtio devices stands in
/// [`Bus::devices`] and in [`slots`].
#[derive(Debug)]
pub struct Bus {
    serial: Serial,
    i8042: I8042,
    vsock: Transport<Vsock>,
    net: Option<Transport<Net>>,
    disks: Vec<Transport<Block>>,
    rng: Transport<Rng>,
}

impl Bus {
    /// Index of the vsock device.
    pub const VSOCK: u8 = 0;
    /// Index of the net device, if there is one.
    pub const NET: u8 = 1;

    /// Puts the devices on the bus; the first disk is the guest's `vda`.
    ///
    /// # Errors
    /// [`TooManyDevices`] when they do not fit the layout.
    pub fn new(
        serial: Serial,
        vsock: Vsock,
        net: Option<Net>,
        disks: Vec<Block>,
    ) -> Result<Self, TooManyDevices> {
        let bus = Self {
            serial,
            i8042: I8042::default(),
            vsock: Transport::new(vsock),
            net: net.map(Transport::new),
            disks: disks.into_iter().map(Transport::new).collect(),
            rng: Transport::new(Rng::default()),
        };
        bus.slots()?;
        Ok(bus)
    }

    /// Where each virtio device lies, in the order of their indices.
    ///
    /// # Errors
    /// As [`slots`].
    pub fn slots(&self) -> Result<Vec<MmioSlot>, TooManyDevices> {
        slots(self.disks.len(), self.net.is_some())
    }

    /// A guest's read of `data.len()` bytes at `address`.
    pub fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset, _)) = self.find(address) {
            device.read(offset, data);
        }
    }

    /// A guest's write at `address`.
    pub fn mmio_write(&mut self, address: u64, data: &[u8], ram: &GuestRam) -> Effects {
        match self.find(address) {
            Some((device, offset, gsi)) => device.write(offset, data, ram).effects(gsi),
            None => Effects::NONE,
        }
    }

    /// A guest's port read. String instructions arrive with all their bytes: each
    /// is one access to the same port.
    pub fn pio_read(&mut self, port: u16, data: &mut [u8]) {
        for byte in data {
            *byte = match port {
                I8042_DATA => self.i8042.read_data(),
                I8042_COMMAND => self.i8042.read_status(),
                PVPANIC_PORT => pvpanic::read(),
                _ => {
                    if let Some(register) = register(port, SERIAL_PORT, SERIAL_PORTS) {
                        self.serial.read(register)
                    } else if let Some(register) = register(port, POWER_PORT, POWER_PORTS) {
                        power::read(register)
                    } else {
                        0xff
                    }
                }
            };
        }
    }

    /// A guest's port write; string instructions as in [`Bus::pio_read`].
    pub fn pio_write(&mut self, port: u16, data: &[u8]) -> Effects {
        let mut effects = Effects::NONE;
        for byte in data {
            match port {
                I8042_DATA => self.i8042.write_data(*byte),
                I8042_COMMAND => {
                    let reset = self.i8042.write_command(*byte);
                    effects.merge(Effects::end(reset.then_some(GuestEnd::Rebooted)));
                }
                PVPANIC_PORT => effects.merge(Effects::end(pvpanic::write(*byte))),
                _ => {
                    if let Some(register) = register(port, SERIAL_PORT, SERIAL_PORTS) {
                        if self.serial.write(register, *byte) {
                            effects.interrupts = effects.interrupts.union(Lines::one(SERIAL_GSI));
                        }
                    } else if let Some(register) = register(port, POWER_PORT, POWER_PORTS) {
                        effects.merge(Effects::end(power::write(register, *byte)));
                    }
                }
            }
        }
        effects
    }

    /// A queue's ioeventfd fired.
    pub fn queue_notify(&mut self, device: usize, queue: usize, ram: &GuestRam) -> Effects {
        match self.at(device) {
            Some((transport, gsi)) => transport.notify(queue, ram).effects(gsi),
            None => Effects::NONE,
        }
    }

    /// Does what devices left at their bound ([`Effects::more_work`]), one bound
    /// further.
    pub fn continue_work(&mut self, ram: &GuestRam) -> Effects {
        let mut effects = Effects::NONE;
        for (device, gsi) in self.devices_mut().zip(FIRST_GSI..) {
            effects.merge(device.continue_work(ram).effects(gsi));
        }
        effects
    }

    /// Host descriptors are ready ([`HostPoll::ready`](crate::poll::HostPoll::ready)):
    /// their devices move what can be moved.
    pub fn host_ready(&mut self, ready: &[Ready], ram: &GuestRam) -> Effects {
        let mut effects = Effects::NONE;
        for (index, (device, gsi)) in self.devices_mut().zip(FIRST_GSI..).enumerate() {
            let own = ready.iter().filter(|ready| ready.device == index);
            let own: Vec<Ready> = own.copied().collect();
            if !own.is_empty() {
                effects.merge(device.host_ready(&own, ram).effects(gsi));
            }
        }
        effects
    }

    /// The host's side of devices was changed ([`Bus::attach_hosts`], or a
    /// restore): they do what follows from it.
    pub fn host_changed(&mut self, ram: &GuestRam) -> Effects {
        let mut effects = Effects::NONE;
        for (device, gsi) in self.devices_mut().zip(FIRST_GSI..) {
            effects.merge(device.host_ready(&[], ram).effects(gsi));
        }
        effects
    }

    /// Gives the vsock device the host's side of a lease: the end of the invocation
    /// channel that the guest will open, or that a restore brought, and the hub. Call
    /// [`Bus::host_changed`] afterwards; [`Bus::restore`] takes all of it away.
    ///
    /// # Errors
    /// When a socket cannot be made non-blocking.
    pub fn attach_hosts(&mut self, ends: HostEnds) -> io::Result<()> {
        let vsock = self.vsock.device_mut();
        vsock.attach_channel(ends.channel)?;
        ends.hub.map_or(Ok(()), |hub| vsock.attach_hub(hub))
    }

    /// Drops the frames that wait for a guest which is about to run: they were sent to
    /// an earlier life.
    ///
    /// # Errors
    /// When the tap cannot be read, or frames come faster than they are dropped.
    pub fn drop_queued_frames(&self) -> io::Result<()> {
        match &self.net {
            Some(net) => Ok(net.device().drop_queued()?),
            None => Ok(()),
        }
    }

    /// Whether no device has work in flight, so that [`Bus::save`] can succeed.
    /// Notifications that still sit in ioeventfds are not known here.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.devices().all(MmioDevice::is_quiet)
    }

    /// Keeps what the scratch disks hold, each in the next of `files`; the state then
    /// holds nothing of it.
    ///
    /// # Errors
    /// [`RebaseError`] names the disk; the snapshot has to be thrown away.
    pub fn rebase_disks(&mut self, files: Vec<File>) -> Result<(), RebaseError> {
        let disks = self.disks.iter_mut().map(Transport::device_mut).enumerate();
        let scratch: Vec<_> = disks.filter(|(_, disk)| disk.is_scratch()).collect();
        if scratch.len() != files.len() {
            return Err(RebaseError::Count {
                files: files.len(),
                disks: scratch.len(),
            });
        }
        for ((index, disk), file) in scratch.into_iter().zip(files) {
            disk.rebase(file)
                .map_err(|source| RebaseError::Disk { index, source })?;
        }
        Ok(())
    }

    /// Bytes of serial output that nobody took in time.
    #[must_use]
    pub fn serial_dropped(&self) -> u64 {
        self.serial.dropped()
    }

    /// The virtio devices in the order of their indices, windows and interrupt lines.
    fn devices(&self) -> impl Iterator<Item = &dyn MmioDevice> {
        let Self {
            vsock,
            net,
            disks,
            rng,
            ..
        } = self;
        let (vsock, rng): (&dyn MmioDevice, &dyn MmioDevice) = (vsock, rng);
        let net = net.iter().map(|net| -> &dyn MmioDevice { net });
        let disks = disks.iter().map(|disk| -> &dyn MmioDevice { disk });
        once(vsock).chain(net).chain(disks).chain(once(rng))
    }

    /// As [`Bus::devices`].
    fn devices_mut(&mut self) -> impl Iterator<Item = &mut dyn MmioDevice> {
        let Self {
            vsock,
            net,
            disks,
            rng,
            ..
        } = self;
        let (vsock, rng): (&mut dyn MmioDevice, &mut dyn MmioDevice) = (vsock, rng);
        let net = net.iter_mut().map(|net| -> &mut dyn MmioDevice { net });
        let disks = disks.iter_mut().map(|disk| -> &mut dyn MmioDevice { disk });
        once(vsock).chain(net).chain(disks).chain(once(rng))
    }

    /// Device `index` and its interrupt line.
    fn at(&mut self, index: usize) -> Option<(&mut dyn MmioDevice, u32)> {
        self.devices_mut().zip(FIRST_GSI..).nth(index)
    }

    /// The device at `address`, the offset in its window, its interrupt line.
    fn find(&mut self, address: u64) -> Option<(&mut dyn MmioDevice, u64, u32)> {
        let offset = address.checked_sub(MMIO_BASE)?;
        let index = usize::try_from(offset / MMIO_WINDOW).ok()?;
        self.at(index)
            .map(|(device, gsi)| (device, offset % MMIO_WINDOW, gsi))
    }
}

/// Where the virtio devices of a machine with so many disks, and maybe a network, lie.
///
/// # Errors
/// [`TooManyDevices`] when they do not fit the layout.
pub fn slots(disks: usize, net: bool) -> Result<Vec<MmioSlot>, TooManyDevices> {
    let queues: Vec<usize> = once(Vsock::QUEUE_SIZES.len())
        .chain(net.then_some(Net::QUEUE_SIZES.len()))
        .chain(repeat_n(Block::QUEUE_SIZES.len(), disks))
        .chain(once(Rng::QUEUE_SIZES.len()))
        .collect();
    if queues.len() > MAX_VIRTIO {
        return Err(TooManyDevices {
            devices: queues.len(),
        });
    }
    let place = |(device, (queues, nth)): (usize, (usize, u32))| MmioSlot {
        device,
        base: MMIO_BASE + u64::from(nth) * MMIO_WINDOW,
        gsi: FIRST_GSI + nth,
        queues,
    };
    Ok(queues.into_iter().zip(0..).enumerate().map(place).collect())
}

/// The register of a device with `count` ports from `first` on.
fn register(port: u16, first: u16, count: u16) -> Option<u8> {
    let register = port
        .checked_sub(first)
        .filter(|register| *register < count)?;
    u8::try_from(register).ok()
}
