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

impl VirtQueue {
    /// Answers the chains that are available, one after the other: at most as many
    /// as the queue is long, and none after buffers of `bytes` bytes in all.
    /// `answer` says how many bytes it wrote into its chain.
    ///
    /// # Errors
    /// [`QueueError`] when ring or chain are broken, or when `answer` says so.
    pub fn serve(
        &mut self,
        ram: &GuestRam,
        bytes: u64,
        mut answer: impl FnMut(&Chain, &GuestRam) -> Result<u64, QueueError>,
    ) -> Result<Progress, QueueError> {
        let mut moved = 0_u64;
        for _ in 0..self.size() {
            let Some(chain) = self.pop(ram)? else {
                return Ok(Progress::Done);
            };
            let written = answer(&chain, ram)?;
            self.push_used(ram, chain.head, u32::try_from(written).unwrap_or(u32::MAX))?;
            moved = moved
                .saturating_add(chain.readable.len())
                .saturating_add(chain.writable.len());
            if moved >= bytes {
                break;
            }
        }
        Ok(Progress::More)
    }
}
