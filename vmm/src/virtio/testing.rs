//! A small virtio driver for tests: initialises a device through its registers and
//! speaks to it through rings in real guest memory.

#![allow(
    clippy::cast_possible_truncation,
    unused_must_use,
    reason = "tests choose their own numbers, and look at effects where they matter"
)]

mod hostile;

use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::transport::{MmioDevice, Signals, Transport};
use super::{COMMON_FEATURES, VirtioDevice};
use crate::memory::GuestRam;
pub(crate) use hostile::assert_survives_hostile_rings;

pub(crate) const RAM_SIZE: u64 = 16 << 20;
/// From here on memory is free for buffers.
pub(crate) const BUFFERS: u64 = 1 << 20;

/// Guest memory for tests: 16 MiB from 0 on.
pub(crate) fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), RAM_SIZE as usize)]).unwrap()
}

/// One descriptor of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Desc {
    pub addr: u64,
    pub len: u32,
    pub writable: bool,
}

pub(crate) fn readable(addr: u64, len: u32) -> Desc {
    Desc {
        addr,
        len,
        writable: false,
    }
}

pub(crate) fn writable(addr: u64, len: u32) -> Desc {
    Desc {
        addr,
        len,
        writable: true,
    }
}

/// The driver's side of a queue.
#[derive(Debug)]
pub(crate) struct Ring {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub next_desc: u16,
    pub avail_idx: u16,
    pub used_seen: u16,
}

impl Ring {
    /// The ring for queue `index`, at its place in the first MiB.
    pub fn new(index: u64, size: u16) -> Self {
        let base = 0x10000 * (index + 1);
        Self {
            size,
            desc: base,
            avail: base + 0x4000,
            used: base + 0x8000,
            next_desc: 0,
            avail_idx: 0,
            used_seen: 0,
        }
    }

    pub fn write_desc(
        &self,
        ram: &GuestRam,
        index: u16,
        addr: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        ram.write_slice(&bytes, GuestAddress(self.desc + 16 * u64::from(index)))
            .unwrap();
    }

    /// Makes the chain that starts at descriptor `head` available.
    pub fn publish(&mut self, ram: &GuestRam, head: u16) {
        let slot = self.avail + 4 + 2 * u64::from(self.avail_idx % self.size);
        ram.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.set_avail_idx(ram, self.avail_idx);
    }

    pub fn set_avail_idx(&self, ram: &GuestRam, index: u16) {
        ram.write_obj(index.to_le(), GuestAddress(self.avail + 2))
            .unwrap();
    }

    /// Offers a chain; returns its head.
    pub fn offer(&mut self, ram: &GuestRam, chain: &[Desc]) -> u16 {
        let head = self.next_desc % self.size;
        for (nth, desc) in chain.iter().enumerate() {
            let last = nth + 1 == chain.len();
            let index = self.next_desc % self.size;
            self.next_desc = self.next_desc.wrapping_add(1);
            let flags = u16::from(!last) | if desc.writable { 2 } else { 0 };
            self.write_desc(
                ram,
                index,
                desc.addr,
                desc.len,
                flags,
                self.next_desc % self.size,
            );
        }
        self.publish(ram, head);
        head
    }

    /// What was used since the last call: heads and lengths. The next one interrupts.
    pub fn take_used(&mut self, ram: &GuestRam) -> Vec<(u32, u32)> {
        let index = u16::from_le(ram.read_obj(GuestAddress(self.used + 2)).unwrap());
        let mut used = Vec::new();
        while self.used_seen != index {
            let slot = self.used + 4 + 8 * u64::from(self.used_seen % self.size);
            let id: u32 = ram.read_obj(GuestAddress(slot)).unwrap();
            let len: u32 = ram.read_obj(GuestAddress(slot + 4)).unwrap();
            used.push((u32::from_le(id), u32::from_le(len)));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        // As Linux does: an interrupt for the next one, please.
        self.set_used_event(ram, self.used_seen);
        used
    }

    /// Asks for an interrupt when used entry `index` is written (EVENT_IDX).
    pub fn set_used_event(&self, ram: &GuestRam, index: u16) {
        let at = self.avail + 4 + 2 * u64::from(self.size);
        ram.write_obj(index.to_le(), GuestAddress(at)).unwrap();
    }

    /// For which available entry the device wants to be notified (EVENT_IDX).
    pub fn avail_event(&self, ram: &GuestRam) -> u16 {
        let at = self.used + 4 + 8 * u64::from(self.size);
        u16::from_le(ram.read_obj(GuestAddress(at)).unwrap())
    }
}

/// Empty rings for queues of these sizes.
fn rings(sizes: &[u16]) -> Vec<Ring> {
    let rings = (0..).zip(sizes);
    rings.map(|(index, size)| Ring::new(index, *size)).collect()
}

/// A device with a driver.
#[derive(Debug)]
pub(crate) struct Driver<D> {
    pub transport: Transport<D>,
    pub ram: GuestRam,
    pub rings: Vec<Ring>,
}

impl<D: VirtioDevice> Driver<D> {
    /// A device that was not touched yet.
    pub fn cold(device: D) -> Self {
        Self {
            transport: Transport::new(device),
            ram: ram(),
            rings: rings(D::QUEUE_SIZES),
        }
    }

    /// A device that is live, with all common features but EVENT_IDX.
    pub fn live(device: D) -> Self {
        Self::live_with(device, COMMON_FEATURES & !super::F_EVENT_IDX)
    }

    pub fn live_with(device: D, features: u64) -> Self {
        let mut driver = Self::cold(device);
        driver.initialise(features);
        driver
    }

    /// Section 3.1.1, as Linux does it.
    pub fn initialise(&mut self, features: u64) {
        self.write(0x70, 0);
        self.write(0x70, 1);
        self.write(0x70, 3);
        self.choose_features(features);
        self.write(0x70, 11);
        assert_eq!(self.read(0x70), 11, "features were refused");
        for index in 0..self.rings.len() {
            self.set_queue_up(index);
        }
        self.write(0x70, 15);
        assert_eq!(self.read(0x70), 15);
    }

    pub fn choose_features(&mut self, features: u64) {
        self.write(0x24, 1);
        self.write(0x20, (features >> 32) as u32);
        self.write(0x24, 0);
        self.write(0x20, features as u32);
    }

    pub fn set_queue_up(&mut self, index: usize) {
        let ring = &self.rings[index];
        let (size, desc, avail, used) = (ring.size, ring.desc, ring.avail, ring.used);
        self.write(0x30, index as u32);
        self.write(0x38, size.into());
        for (register, address) in [(0x80, desc), (0x90, avail), (0xa0, used)] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut word = [0xaa; 4];
        self.transport.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    pub fn write(&mut self, register: u64, value: u32) -> Signals {
        self.transport
            .write(register, &value.to_le_bytes(), &self.ram)
    }

    pub fn offer(&mut self, queue: usize, chain: &[Desc]) -> u16 {
        self.rings[queue].offer(&self.ram, chain)
    }

    pub fn notify(&mut self, queue: usize) -> Signals {
        self.transport.notify(queue, &self.ram)
    }

    pub fn take_used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        self.rings[queue].take_used(&self.ram)
    }

    /// Whether the page of `addr` is marked as written by the host's side.
    pub fn is_dirty(&self, addr: u64) -> bool {
        let region = self.ram.find_region(GuestAddress(addr)).unwrap();
        region.bitmap().dirty_at(addr as usize)
    }

    pub fn needs_reset(&self) -> bool {
        self.read(0x70) & 64 != 0
    }

    pub fn put(&self, addr: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }
}
