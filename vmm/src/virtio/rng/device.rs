//! The entropy device: one queue of buffers to fill.

use super::RngV1;
use crate::entropy;
use crate::memory::GuestRam;
use crate::virtio::queue::{Chain, QueueError, Served, VirtQueue, on_queue};
use crate::virtio::{COMMON_FEATURES, DeviceError, DeviceRestoreError, Progress, VirtioDevice};

const DEVICE_ID: u32 = 4;
const QUEUE_SIZE: u16 = 8;

/// Most bytes that one buffer gets: Linux asks for 64 at most, and a device may
/// answer with fewer than there is room for (section 5.4.6.2).
const BYTES_PER_REQUEST: usize = 256;
/// Bytes after which a call ends: a queue of such requests.
const BYTES_PER_CALL: u64 = 2 << 10;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng {}

impl Rng {
    /// Fills one buffer. Returns how many bytes of it.
    fn answer(chain: &Chain, ram: &GuestRam) -> Result<Served, QueueError> {
        // The driver must offer room to write, and nothing to read (5.4.6.1).
        if chain.writable.is_empty() || !chain.readable.is_empty() {
            return Err(QueueError::Buffer);
        }
        let mut bytes = [0; BYTES_PER_REQUEST];
        let room = usize::try_from(chain.writable.len()).unwrap_or(usize::MAX);
        let Some(fresh) = bytes.get_mut(..room.min(BYTES_PER_REQUEST)) else {
            return Err(QueueError::Buffer);
        };
        // No randomness: the device must give some (5.4.6.2), so it gives up.
        entropy::fill(fresh).map_err(|_| QueueError::Buffer)?;
        chain.writable.write(ram, 0, fresh)?;
        let written = u64::try_from(fresh.len()).map_err(|_| QueueError::Buffer)?;
        Ok(Served::written(written))
    }
}

impl VirtioDevice for Rng {
    type State = RngV1;

    const QUEUE_SIZES: &'static [u16] = &[QUEUE_SIZE];

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        // There is none (section 5.4.4).
        data.fill(0);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn process(
        &mut self,
        index: usize,
        queues: &mut [VirtQueue],
        ram: &GuestRam,
    ) -> Result<Progress, DeviceError> {
        on_queue(queues, index, |queue| {
            queue.serve(ram, BYTES_PER_CALL, |chain, ram| {
                Self::answer(chain, ram).map(Some)
            })
        })
    }

    fn is_quiet(&self) -> bool {
        true
    }

    fn save(&self) -> RngV1 {
        RngV1 {}
    }

    fn restore(&mut self, _state: &RngV1) -> Result<(), DeviceRestoreError> {
        Ok(())
    }
}
