//! Descriptor chains (section 2.7.5), checked before a device sees them.
//!
//! A chain is walked exactly once, into a list of buffers that the guest can no
//! longer change. The bytes behind them stay the guest's: they are copied once
//! (headers) or moved by the kernel (payload), and never looked at twice.

use virtio_queue::DescriptorChain;
use vm_memory::bitmap::BS;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::QueueError;
use crate::memory::{DeviceWrites, GuestRam};

/// A piece of guest memory that I/O can be done on.
pub type GuestSlice<'a> = VolatileSlice<'a, BS<'a, DeviceWrites>>;

/// A checked descriptor chain.
#[derive(Debug)]
pub struct Chain {
    /// Index of its first descriptor: what goes into the used ring.
    pub head: u16,
    /// What the driver gave the device to read; comes first in the chain.
    pub readable: Buffers,
    /// What the driver gave the device to write.
    pub writable: Buffers,
}

impl Chain {
    /// Walks `chain`, of a queue with `size` descriptors.
    pub(super) fn collect(
        mut chain: DescriptorChain<&GuestRam>,
        size: u16,
    ) -> Result<Self, QueueError> {
        let head = chain.head_index();
        let malformed = QueueError::Chain { head };
        let mut collected = Self {
            head,
            readable: Buffers::default(),
            writable: Buffers::default(),
        };
        let mut complete = false;
        // A driver must not make a chain longer than the queue, not even in an
        // indirect table (section 2.7.5.3.1).
        for descriptor in chain.by_ref().take(usize::from(size)) {
            complete = !descriptor.has_next();
            let segment = Segment {
                start: descriptor.addr().0,
                len: descriptor.len(),
            };
            if descriptor.is_write_only() {
                collected.writable.push(segment);
            } else if collected.writable.segments.is_empty() {
                collected.readable.push(segment);
            } else {
                return Err(malformed);
            }
        }
        // The iterator stops without a word at a bad index, a loop or an overflow:
        // then the last descriptor still promised another one.
        if complete {
            Ok(collected)
        } else {
            Err(malformed)
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    start: u64,
    len: u32,
}

/// A sequence of buffers, addressed as if it were one.
#[derive(Debug, Default)]
pub struct Buffers {
    segments: Vec<Segment>,
    len: u64,
}

impl Buffers {
    fn push(&mut self, segment: Segment) {
        // At most 2^15 descriptors of less than 2^32 bytes.
        self.len += u64::from(segment.len);
        self.segments.push(segment);
    }

    /// Bytes in all buffers together.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte in them.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The guest memory of `len` bytes from `offset` on.
    ///
    /// # Errors
    /// [`QueueError::Buffer`] when the buffers are shorter or not in guest memory.
    pub fn slices<'a>(
        &self,
        ram: &'a GuestRam,
        offset: u64,
        len: u64,
        access: Permissions,
    ) -> Result<Vec<GuestSlice<'a>>, QueueError> {
        let mut slices = Vec::with_capacity(self.segments.len());
        let (mut skip, mut wanted) = (offset, len);
        for segment in &self.segments {
            let here = u64::from(segment.len).saturating_sub(skip).min(wanted);
            if here > 0 {
                let start = segment.start.checked_add(skip).ok_or(QueueError::Buffer)?;
                let count = usize::try_from(here).map_err(|_| QueueError::Buffer)?;
                let found = ram.get_slices(GuestAddress(start), count, access);
                for slice in found.map_err(|_| QueueError::Buffer)? {
                    slices.push(slice.map_err(|_| QueueError::Buffer)?);
                }
                wanted -= here;
            }
            skip = skip.saturating_sub(u64::from(segment.len));
        }
        if wanted == 0 {
            Ok(slices)
        } else {
            Err(QueueError::Buffer)
        }
    }

    /// Copies bytes out of guest memory.
    ///
    /// # Errors
    /// As [`Buffers::slices`].
    pub fn read(&self, ram: &GuestRam, offset: u64, bytes: &mut [u8]) -> Result<(), QueueError> {
        let len = u64::try_from(bytes.len()).map_err(|_| QueueError::Buffer)?;
        let mut rest = bytes;
        for slice in self.slices(ram, offset, len, Permissions::Read)? {
            let (here, after) = rest.split_at_mut(slice.len().min(rest.len()));
            slice.read_slice(here, 0).map_err(|_| QueueError::Buffer)?;
            rest = after;
        }
        Ok(())
    }

    /// Copies bytes into guest memory.
    ///
    /// # Errors
    /// As [`Buffers::slices`].
    pub fn write(&self, ram: &GuestRam, offset: u64, bytes: &[u8]) -> Result<(), QueueError> {
        let len = u64::try_from(bytes.len()).map_err(|_| QueueError::Buffer)?;
        let mut rest = bytes;
        for slice in self.slices(ram, offset, len, Permissions::Write)? {
            let (here, after) = rest.split_at(slice.len().min(rest.len()));
            slice.write_slice(here, 0).map_err(|_| QueueError::Buffer)?;
            rest = after;
        }
        Ok(())
    }
}
