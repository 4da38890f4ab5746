//! Serving a queue: take a chain, answer it, give it back, within a bound.

use super::{Chain, QueueError, VirtQueue};
use crate::memory::GuestRam;
use crate::virtio::{DeviceError, Progress};

/// Works on queue `index` of a device, and names the queue when it is broken.
///
/// # Errors
/// [`DeviceError`] with what is wrong with the queue.
pub fn on_queue<T>(
    queues: &mut [VirtQueue],
    index: usize,
    work: impl FnOnce(&mut VirtQueue) -> Result<T, QueueError>,
) -> Result<T, DeviceError> {
    let queue = queues
        .get_mut(index)
        .ok_or(DeviceError::Missing { queue: index })?;
    work(queue).map_err(|source| DeviceError::Queue {
        queue: index,
        source,
    })
}

/// What became of a chain.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Bytes that were written into it.
    pub written: u64,
    /// Bytes that were moved or changed for it.
    pub moved: u64,
}

impl Served {
    /// Bytes were written into the chain, and nothing else was done.
    #[must_use]
    pub fn written(bytes: u64) -> Self {
        Self {
            written: bytes,
            moved: bytes,
        }
    }
}

impl VirtQueue {
    /// Answers the chains that are available, one after the other: at most as many
    /// as the queue is long, and none after `bytes` bytes were moved. When `answer`
    /// says `None`, it cannot be done now: the chain stays, and nothing follows it.
    ///
    /// # Errors
    /// [`QueueError`] when ring or chain are broken, or when `answer` says so.
    pub fn serve(
        &mut self,
        ram: &GuestRam,
        bytes: u64,
        mut answer: impl FnMut(&Chain, &GuestRam) -> Result<Option<Served>, QueueError>,
    ) -> Result<Progress, QueueError> {
        let mut moved = 0_u64;
        for _ in 0..self.size() {
            let Some(chain) = self.pop(ram)? else {
                return Ok(Progress::Done);
            };
            let Some(served) = answer(&chain, ram)? else {
                self.undo_pop();
                return Ok(Progress::Done);
            };
            let written = u32::try_from(served.written).unwrap_or(u32::MAX);
            self.push_used(ram, chain.head, written)?;
            moved += served.moved;
            if moved >= bytes {
                break;
            }
        }
        Ok(Progress::More)
    }
}
