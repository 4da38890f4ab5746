//! The disk: takes requests from its one queue and answers each, well or badly.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use vm_memory::Permissions;

use super::BlockV1;
use super::request::{HEADER_SIZE, ID_SIZE, Request, SECTOR, Status, parse};
use crate::memory::GuestRam;
use crate::sys::volatile_io;
use crate::virtio::queue::{Buffers, Chain, QueueError, VirtQueue, on_queue};
use crate::virtio::{
    COMMON_FEATURES, DeviceError, DeviceRestoreError, Progress, VirtioDevice, read_config_bytes,
};

const DEVICE_ID: u32 = 2;
const QUEUE_SIZE: u16 = 256;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;

/// Most bytes of one data descriptor, as told to the driver.
const SIZE_MAX: u32 = 64 << 10;
/// Most data descriptors of a request: a chain also has header and status.
const SEG_MAX: u32 = 254;
/// Most bytes of one read: what a driver can ask for that obeys the other two.
const MAX_READ: u64 = 254 * (64 << 10);
/// The name of every disk (padded with zeroes): they are told apart by their order.
const ID: [u8; ID_SIZE] = *b"snapback\0\0\0\0\0\0\0\0\0\0\0\0";
/// Bytes after which a call ends and somebody else has a turn.
const BYTES_PER_CALL: u64 = 32 << 20;

const _: () = assert!(SEG_MAX + 2 == 256 && QUEUE_SIZE == 256);
const _: () = assert!(SEG_MAX == 254 && SIZE_MAX == 64 << 10);

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its size cannot be found out.
    #[error("size of the image")]
    Size(#[source] io::Error),
    /// Its end would be lost.
    #[error("image of {bytes} bytes is not made of sectors of {SECTOR}")]
    Uneven {
        /// The file's size.
        bytes: u64,
    },
}

/// A read-only disk.
#[derive(Debug)]
pub struct Block {
    image: OwnedFd,
    capacity: u64,
}

impl Block {
    /// A disk that shows `image`.
    ///
    /// # Errors
    /// [`OpenError`] when the file cannot be shown as whole sectors.
    pub fn open(image: impl Into<OwnedFd>) -> Result<Self, OpenError> {
        let image = image.into();
        let stat = rustix::fs::fstat(&image).map_err(|error| OpenError::Size(error.into()))?;
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if !bytes.is_multiple_of(SECTOR) {
            return Err(OpenError::Uneven { bytes });
        }
        Ok(Self {
            image,
            capacity: bytes / SECTOR,
        })
    }

    /// Answers one request. Returns the bytes written into the chain.
    fn answer(&self, chain: &Chain, ram: &GuestRam) -> Result<u64, QueueError> {
        // The last writable byte is the status; without it nothing can be said.
        let data_len = chain
            .writable
            .len()
            .checked_sub(1)
            .ok_or(QueueError::Buffer)?;
        let (status, written) = match self.try_answer(chain, data_len, ram) {
            Ok(written) => (Status::Ok, written),
            Err(status) => (status, 0),
        };
        chain.writable.write(ram, data_len, &[status.code()])?;
        // With the data missing, the status is still at the end of the chain; the
        // length only promises what was written from the beginning on.
        Ok(if written == data_len {
            written + 1
        } else {
            written
        })
    }

    fn try_answer(&self, chain: &Chain, data_len: u64, ram: &GuestRam) -> Result<u64, Status> {
        let mut header = [0; HEADER_SIZE];
        chain
            .readable
            .read(ram, 0, &mut header)
            .map_err(|_| Status::IoError)?;
        match parse(header, data_len, self.capacity, MAX_READ)? {
            Request::Read { offset, len } => {
                self.read(&chain.writable, offset, len, ram)?;
                Ok(len)
            }
            Request::Flush => Ok(0),
            Request::GetId { len } => {
                let room = usize::try_from(len).unwrap_or(ID_SIZE).min(ID_SIZE);
                let id = ID.get(..room).unwrap_or_default();
                chain
                    .writable
                    .write(ram, 0, id)
                    .map_err(|_| Status::IoError)?;
                Ok(u64::try_from(room).unwrap_or(0))
            }
        }
    }

    /// Reads from the image into the guest, all or an error.
    fn read(&self, to: &Buffers, offset: u64, len: u64, ram: &GuestRam) -> Result<(), Status> {
        let mut done = 0;
        while done < len {
            let slices = to
                .slices(ram, done, len - done, Permissions::Write)
                .map_err(|_| Status::IoError)?;
            match volatile_io::preadv(self.image.as_fd(), &slices, offset + done) {
                // The file is shorter than it was.
                Ok(0) => return Err(Status::IoError),
                Ok(read) => done += u64::try_from(read).map_err(|_| Status::IoError)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Status::IoError),
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Block {
    type State = BlockV1;

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES | F_RO | F_SEG_MAX | F_SIZE_MAX
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 16];
        let fields = self.capacity.to_le_bytes().into_iter();
        let fields = fields
            .chain(SIZE_MAX.to_le_bytes())
            .chain(SEG_MAX.to_le_bytes());
        for (byte, value) in config.iter_mut().zip(fields) {
            *byte = value;
        }
        read_config_bytes(&config, offset, data);
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
            queue.serve(ram, BYTES_PER_CALL, |chain, ram| self.answer(chain, ram))
        })
    }

    fn is_quiet(&self) -> bool {
        true
    }

    fn save(&self) -> BlockV1 {
        BlockV1 {
            capacity: self.capacity,
        }
    }

    fn restore(&mut self, state: &BlockV1) -> Result<(), DeviceRestoreError> {
        if state.capacity == self.capacity {
            Ok(())
        } else {
            Err(DeviceRestoreError::Capacity {
                snapshot: state.capacity,
                machine: self.capacity,
            })
        }
    }
}
