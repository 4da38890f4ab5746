//! Frames from the guest.

use std::io;
use std::os::fd::AsFd;

use vm_memory::Permissions;

use super::{HEADER, MAX_LARGE, Net};
use crate::memory::GuestRam;
use crate::sys::volatile_io;
use crate::virtio::Progress;
use crate::virtio::queue::{Chain, QueueError, Served, VirtQueue};

/// Bytes after which a call ends and somebody else has a turn.
const BYTES_PER_CALL: u64 = 2 << 20;
/// Bytes of an Ethernet header: a frame has at least that.
const ETHERNET: u64 = 14;

impl Net {
    /// Writes the driver's frames to the tap, within the bound. When the tap takes no
    /// more, the rest stays in the queue until it does.
    pub(super) fn send(
        &mut self,
        tx: &mut VirtQueue,
        ram: &GuestRam,
    ) -> Result<Progress, QueueError> {
        self.tx_blocked = false;
        tx.serve(ram, BYTES_PER_CALL, |chain, ram| {
            self.send_frame(chain, ram)
        })
    }

    /// `None`: the tap takes no frame now.
    fn send_frame(&mut self, chain: &Chain, ram: &GuestRam) -> Result<Option<Served>, QueueError> {
        let len = chain.readable.len();
        if !chain.writable.is_empty() {
            return Err(QueueError::Buffer);
        }
        let served = Served {
            written: 0,
            moved: len.min(MAX_LARGE),
        };
        // No frame at all, or more than any: dropped.
        if !(HEADER + ETHERNET..=MAX_LARGE).contains(&len) {
            return Ok(Some(served));
        }
        let slices = chain.readable.slices(ram, 0, len, Permissions::Read)?;
        loop {
            match volatile_io::writev(self.tap.as_fd(), &slices) {
                Ok(_) => return Ok(Some(served)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.tx_blocked = true;
                    return Ok(None);
                }
                // A header that makes no sense, a link that is down: the frame is
                // lost, as on any wire.
                Err(_) => return Ok(Some(served)),
            }
        }
    }
}
