//! Frames to the guest.
//!
//! How long a frame is, only reading it tells. So chains are collected for the
//! longest one, the kernel fills them, and the ones that stay empty go back to the
//! queue when the call ends, as if they had not been taken.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use vm_memory::Permissions;

use super::{HEADER, Net};
use crate::memory::GuestRam;
use crate::sys::volatile_io::{self, MAX_SLICES};
use crate::virtio::queue::{Chain, QueueError, VirtQueue};

/// Frames after which a call ends and somebody else has a turn.
const FRAMES_PER_CALL: usize = 64;
/// Where the number of buffers stands in the header.
const NUM_BUFFERS: u64 = 10;

impl Net {
    /// Reads frames while there are frames and buffers, within the bound; the tap
    /// says again when there are more.
    pub(super) fn receive(&mut self, rx: &mut VirtQueue, ram: &GuestRam) -> Result<(), QueueError> {
        let mut free = VecDeque::new();
        for _ in 0..FRAMES_PER_CALL {
            if !self.collect(rx, ram, &mut free)? {
                self.rx_starved = true;
                break;
            }
            match self.read_frame(&free, ram)? {
                Ok(bytes) => Self::give(rx, ram, &mut free, bytes)?,
                Err(io::ErrorKind::Interrupted) => {}
                Err(io::ErrorKind::WouldBlock) => break,
                // The tap is gone: until the driver comes back, nobody looks at it.
                Err(_) => {
                    self.rx_starved = true;
                    break;
                }
            }
        }
        for _ in free {
            rx.undo_pop();
        }
        Ok(())
    }

    /// Takes chains until any frame fits. Returns whether one may be read: a ring
    /// that is too short for the longest one does not get better by waiting.
    fn collect(
        &self,
        rx: &mut VirtQueue,
        ram: &GuestRam,
        free: &mut VecDeque<Chain>,
    ) -> Result<bool, QueueError> {
        let mut room: u64 = free.iter().map(|chain| chain.writable.len()).sum();
        loop {
            let enough = room >= self.room || free.len() >= usize::from(rx.size());
            if enough || !self.mergeable && !free.is_empty() {
                return Ok(true);
            }
            let Some(chain) = rx.pop(ram)? else {
                return Ok(false);
            };
            // There is nothing to read in them, and the header fits (5.1.6.3.1).
            if !chain.readable.is_empty() || chain.writable.len() < HEADER {
                return Err(QueueError::Buffer);
            }
            room += chain.writable.len();
            free.push_back(chain);
        }
    }

    /// Reads one frame with its header into the chains. Returns its length.
    fn read_frame(
        &self,
        free: &VecDeque<Chain>,
        ram: &GuestRam,
    ) -> Result<Result<u64, io::ErrorKind>, QueueError> {
        let chains = if self.mergeable { free.len() } else { 1 };
        let (mut slices, mut room) = (Vec::new(), self.room);
        for chain in free.iter().take(chains) {
            let len = chain.writable.len().min(room);
            slices.extend(chain.writable.slices(ram, 0, len, Permissions::Write)?);
            room -= len;
        }
        // A driver that offers its memory in crumbs gets what fits into these.
        slices.truncate(MAX_SLICES);
        match volatile_io::readv(self.tap.as_fd(), &slices) {
            Ok(0) => Ok(Err(io::ErrorKind::UnexpectedEof)),
            Ok(bytes) => Ok(Ok(u64::try_from(bytes).unwrap_or(0))),
            Err(error) => Ok(Err(error.kind())),
        }
    }

    /// Gives the chains with a frame of `bytes` bytes to the driver, all at once.
    fn give(
        rx: &mut VirtQueue,
        ram: &GuestRam,
        free: &mut VecDeque<Chain>,
        bytes: u64,
    ) -> Result<(), QueueError> {
        // Not even a header: nothing that a tap does.
        if bytes < HEADER {
            return Ok(());
        }
        let (mut used, mut left) = (Vec::new(), bytes);
        for chain in free.iter() {
            if left == 0 {
                break;
            }
            let here = chain.writable.len().min(left);
            used.push((chain.head, u32::try_from(here).unwrap_or(u32::MAX)));
            left -= here;
        }
        if let Some(first) = free.front() {
            let count = u16::try_from(used.len()).unwrap_or(u16::MAX);
            first
                .writable
                .write(ram, NUM_BUFFERS, &count.to_le_bytes())?;
        }
        free.drain(..used.len());
        rx.push_used_together(ram, &used)
    }
}
