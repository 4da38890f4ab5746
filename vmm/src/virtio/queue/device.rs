//! The device's side of one split virtqueue.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{Chain, QueueError, QueueRestoreError, QueueV1};
use crate::memory::GuestRam;

/// Flag in the available ring: the driver wants no interrupts (section 2.7.7).
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Bytes before the entries of the available ring, and of the used ring.
const AVAIL_RING: u64 = 4;
const USED_RING: u64 = 4;
/// Bytes of an entry of the used ring.
const USED_ENTRY: u64 = 8;

/// A half of one of the queue's addresses, as a register of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueRegister {
    /// The descriptor table.
    DescTable,
    /// The available ring.
    AvailRing,
    /// The used ring.
    UsedRing,
}

/// One queue: the driver's settings, and the ring while it is ready.
#[derive(Debug)]
pub struct VirtQueue {
    max_size: u16,
    size: u16,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    /// `Some` exactly while the queue is ready.
    ring: Option<Queue>,
    /// Chains were used since the driver was last told.
    signal_due: bool,
    /// The used index when the driver was last told, or not told because it did not
    /// want to be.
    signalled: u16,
}

impl VirtQueue {
    /// A queue of at most `max_size` descriptors (a power of two).
    #[must_use]
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
            ring: None,
            signal_due: false,
            signalled: 0,
        }
    }

    /// The largest size that the driver may choose.
    #[must_use]
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// The size that the driver chose: also the bound for the work of one call.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether the driver has finished setting it up.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ring.is_some()
    }

    /// The driver chooses a size. It is checked when the queue becomes ready.
    pub fn set_size(&mut self, size: u32) {
        if self.ring.is_none() {
            // No queue has size 0: it stands for all sizes that are no sizes.
            self.size = u16::try_from(size).unwrap_or(0);
        }
    }

    /// The driver sets the low or the high half of an address.
    pub fn set_address(&mut self, register: QueueRegister, high: bool, value: u32) {
        if self.ring.is_some() {
            return;
        }
        let address = match register {
            QueueRegister::DescTable => &mut self.desc_table,
            QueueRegister::AvailRing => &mut self.avail_ring,
            QueueRegister::UsedRing => &mut self.used_ring,
        };
        let value = u64::from(value);
        *address = if high {
            (value << 32) | (*address & 0xffff_ffff)
        } else {
            (*address & !0xffff_ffff) | value
        };
    }

    /// The driver has finished setting the queue up. Returns whether it is usable:
    /// size, alignment, and all three areas inside guest memory.
    #[must_use]
    pub fn make_ready(&mut self, event_idx: bool, ram: &GuestRam) -> bool {
        if self.ring.is_none() {
            self.ring = self.build(event_idx, ram);
            self.signalled = 0;
        }
        self.ring.is_some()
    }

    /// The driver stops using the queue; its settings stay.
    pub fn stop(&mut self) {
        self.ring = None;
        self.signal_due = false;
    }

    /// Back to the state of a new queue.
    pub fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// Takes the next chain from the available ring. Before it answers that there
    /// is none, it asks the driver for a notification of the next one.
    ///
    /// # Errors
    /// [`QueueError`] when ring or chain are broken.
    pub fn pop(&mut self, ram: &GuestRam) -> Result<Option<Chain>, QueueError> {
        let size = self.size;
        let Some(ring) = self.ring.as_mut() else {
            return Ok(None);
        };
        if let Some(chain) = ring.iter(ram).map_err(QueueError::Ring)?.next() {
            return Chain::collect(chain, size).map(Some);
        }
        // Without EVENT_IDX notifications are never switched off.
        if !ring.event_idx_enabled() || !ring.enable_notification(ram).map_err(QueueError::Ring)? {
            return Ok(None);
        }
        match ring.iter(ram).map_err(QueueError::Ring)?.next() {
            Some(chain) => Chain::collect(chain, size).map(Some),
            None => Ok(None),
        }
    }

    /// Puts the chain that was taken last back, as if it had not been taken.
    pub fn undo_pop(&mut self) {
        if let Some(ring) = self.ring.as_mut() {
            ring.go_to_previous_position();
        }
    }

    /// Returns a chain to the driver; the device wrote `written` bytes into it.
    ///
    /// # Errors
    /// [`QueueError::Ring`] when the used ring cannot be written.
    pub fn push_used(&mut self, ram: &GuestRam, head: u16, written: u32) -> Result<(), QueueError> {
        self.push_used_together(ram, &[(head, written)])
    }

    /// Returns several chains at once, heads and bytes written: the driver sees all or
    /// none of them (section 5.1.6.4 needs that for a frame in several buffers).
    ///
    /// # Errors
    /// As [`VirtQueue::push_used`].
    pub fn push_used_together(
        &mut self,
        ram: &GuestRam,
        used: &[(u16, u32)],
    ) -> Result<(), QueueError> {
        let (Some(ring), Some(((head, written), before))) = (self.ring.as_mut(), used.split_last())
        else {
            return Ok(());
        };
        // The library shows each entry as it adds it. So it adds the last one, after
        // the ones before it were written to their places.
        let mut index = ring.next_used();
        for (head, written) in before {
            let slot = USED_RING + USED_ENTRY * u64::from(index % self.size);
            let entry = [u32::from(*head).to_le_bytes(), written.to_le_bytes()].concat();
            ram.write_slice(&entry, GuestAddress(ring.used_ring().saturating_add(slot)))
                .map_err(|source| QueueError::Ring(virtio_queue::Error::GuestMemory(source)))?;
            index = index.wrapping_add(1);
        }
        ring.set_next_used(index);
        ring.add_used(ram, *head, *written)
            .map_err(QueueError::Ring)?;
        self.signal_due = true;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was used since the last call
    /// (section 2.7.7).
    ///
    /// # Errors
    /// [`QueueError::Ring`] when the driver's part of the ring cannot be read.
    pub fn take_signal(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        let due = std::mem::take(&mut self.signal_due);
        let Some(ring) = self.ring.as_mut().filter(|_| due) else {
            return Ok(false);
        };
        let used = ring.next_used();
        let before = std::mem::replace(&mut self.signalled, used);
        // The used index has to be visible before the driver's wish is read: a driver
        // that wants interrupts again looks at the index afterwards.
        fence(Ordering::SeqCst);
        let wish = |offset: u64| {
            let at = GuestAddress(ring.avail_ring().saturating_add(offset));
            ram.load(at, Ordering::Relaxed)
                .map(u16::from_le)
                .map_err(|source| QueueError::Ring(virtio_queue::Error::GuestMemory(source)))
        };
        if ring.event_idx_enabled() {
            // The driver wants to be told when the entry that it names was used: it is
            // among those since the last time. The library counts calls instead of
            // entries, so this is done here (section 2.7.10).
            let event = wish(AVAIL_RING + 2 * u64::from(self.size))?;
            let behind = used.wrapping_sub(event).wrapping_sub(1);
            return Ok(behind < used.wrapping_sub(before));
        }
        Ok(wish(0)? & AVAIL_F_NO_INTERRUPT == 0)
    }

    /// The state for a snapshot.
    #[must_use]
    pub fn save(&self) -> QueueV1 {
        QueueV1 {
            size: self.size,
            ready: self.ring.is_some(),
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
            next_avail: self.ring.as_ref().map_or(0, QueueT::next_avail),
            next_used: self.ring.as_ref().map_or(0, QueueT::next_used),
        }
    }

    /// Puts the queue into `state`, which may be hostile.
    ///
    /// # Errors
    /// [`QueueRestoreError`]; the queue is then not ready.
    pub fn restore(
        &mut self,
        state: &QueueV1,
        event_idx: bool,
        ram: &GuestRam,
    ) -> Result<(), QueueRestoreError> {
        self.reset();
        self.size = state.size;
        self.desc_table = state.desc_table;
        self.avail_ring = state.avail_ring;
        self.used_ring = state.used_ring;
        if !state.ready {
            let has_run = state.next_avail != 0 || state.next_used != 0;
            return if has_run {
                Err(QueueRestoreError::NotReady)
            } else {
                Ok(())
            };
        }
        let mut ring = self
            .build(event_idx, ram)
            .ok_or(QueueRestoreError::Unusable)?;
        ring.set_next_avail(state.next_avail);
        ring.set_next_used(state.next_used);
        self.signalled = state.next_used;
        self.ring = Some(ring);
        Ok(())
    }

    fn build(&self, event_idx: bool, ram: &GuestRam) -> Option<Queue> {
        let mut ring = Queue::new(self.max_size).ok()?;
        ring.try_set_size(self.size).ok()?;
        ring.try_set_desc_table_address(GuestAddress(self.desc_table))
            .ok()?;
        ring.try_set_avail_ring_address(GuestAddress(self.avail_ring))
            .ok()?;
        ring.try_set_used_ring_address(GuestAddress(self.used_ring))
            .ok()?;
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        // The library takes address 0 for "not set up".
        (self.avail_ring != 0 && ring.is_valid(ram)).then_some(ring)
    }
}
