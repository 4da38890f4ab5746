//! The disk: takes requests from its one queue and answers each, well or badly.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::io::Errno;
use vm_memory::Permissions;

use super::BlockV1;
use super::map::CLUSTER;
use super::request::{
    Data, HEADER_SIZE, ID_SIZE, Limits, Request, SECTOR, SEGMENT_SIZE, Status, parse,
};
use super::scratch::Scratch;
use crate::memory::GuestRam;
use crate::sys::volatile_io;
use crate::virtio::queue::{Buffers, Chain, QueueError, Served, VirtQueue, on_queue};
use crate::virtio::{
    COMMON_FEATURES, DeviceError, DeviceRestoreError, Progress, VirtioDevice, read_config_bytes,
};

const DEVICE_ID: u32 = 2;
const QUEUE_SIZE: u16 = 256;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Most bytes of one data descriptor, as told to the driver.
const SIZE_MAX: u32 = 64 << 10;
/// Most data descriptors of a request: a chain also has header and status.
const SEG_MAX: u32 = 254;
/// Most bytes of one read or write: what a driver can ask for that obeys the other
/// two.
const MAX_TRANSFER: u64 = 254 * (64 << 10);
/// Most sectors of one range to discard: 1 GiB.
const MAX_DISCARD: u32 = 1 << 21;
/// Most sectors of one range to make zero, which may mean to write them: 8 MiB.
const MAX_ZEROES: u32 = 1 << 14;
/// Sectors of a cluster, and how many doublings of a sector that is.
const CLUSTER_SECTORS: u32 = 8;
const CLUSTER_EXPONENT: u8 = 3;
/// The name of a disk, padded with zeroes, before its number.
const ID: &str = "snapback-disk-";
/// Bytes after which a call ends and somebody else has a turn.
const BYTES_PER_CALL: u64 = 32 << 20;

const _: () = assert!(SEG_MAX + 2 == 256 && QUEUE_SIZE == 256);
const _: () = assert!(SEG_MAX == 254 && SIZE_MAX == 64 << 10);
const _: () = assert!(CLUSTER == SECTOR << CLUSTER_EXPONENT && CLUSTER == 8 * SECTOR);

/// Why files cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The size of one cannot be found out.
    #[error("size of the image")]
    Size(#[source] io::Error),
    /// Its end would be lost.
    #[error("image of {bytes} bytes is not made of sectors of {SECTOR}")]
    Uneven {
        /// The file's size.
        bytes: u64,
    },
    /// A scratch disk is larger than its map allows.
    #[error("a scratch disk of {bytes} bytes is too large")]
    TooLarge {
        /// The base's size.
        bytes: u64,
    },
    /// The overlay does not belong to the base.
    #[error("an overlay of {found} bytes over a base of {bytes}")]
    Overlay {
        /// The overlay's size.
        found: u64,
        /// The base's size.
        bytes: u64,
    },
}

/// The size of a file that is made of sectors.
pub(super) fn size(file: &File) -> Result<u64, OpenError> {
    // Not `File::metadata`: the C library answers a refused `statx` with a call that
    // the jail does not allow.
    let stat = rustix::fs::fstat(file).map_err(|error| OpenError::Size(error.into()))?;
    let bytes = u64::try_from(stat.st_size).unwrap_or(0);
    if bytes.is_multiple_of(SECTOR) {
        Ok(bytes)
    } else {
        Err(OpenError::Uneven { bytes })
    }
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    name: [u8; ID_SIZE],
    capacity: u64,
    store: Store,
}

#[derive(Debug)]
enum Store {
    Image(File),
    Scratch(Box<Scratch>),
}

impl Block {
    /// A disk that shows `image` and cannot be written; the machine's disk number
    /// `index`.
    ///
    /// # Errors
    /// [`OpenError`] when the file cannot be shown as whole sectors.
    pub fn read_only(index: usize, image: File) -> Result<Self, OpenError> {
        Ok(Self {
            name: name(index),
            capacity: size(&image)? / SECTOR,
            store: Store::Image(image),
        })
    }

    /// A disk that shows `base` and keeps what is written in `overlay`, of which at
    /// most `limit` bytes are taken up; the machine's disk number `index`.
    ///
    /// # Errors
    /// [`OpenError`] when the files cannot be shown as whole sectors or do not
    /// belong together.
    pub fn scratch(index: usize, base: File, overlay: File, limit: u64) -> Result<Self, OpenError> {
        let capacity = size(&base)? / SECTOR;
        let scratch = Scratch::open(base, overlay, limit)?;
        Ok(Self {
            name: name(index),
            capacity,
            store: Store::Scratch(Box::new(scratch)),
        })
    }

    /// Whether it can be written.
    #[must_use]
    pub fn is_scratch(&self) -> bool {
        matches!(self.store, Store::Scratch(_))
    }

    /// Copies what a scratch disk holds to `file`, an empty sparse file of its
    /// length. That is its base from now on, and nothing lies over it.
    ///
    /// # Errors
    /// What the kernel reports; `InvalidInput` for a file of another length, and for
    /// a disk that cannot be written.
    pub fn rebase(&mut self, file: File) -> io::Result<()> {
        match &mut self.store {
            Store::Image(_) => Err(io::ErrorKind::InvalidInput.into()),
            Store::Scratch(scratch) => scratch.rebase(file),
        }
    }

    fn limits(&self) -> Limits {
        let (discard, zeroes) = match self.store {
            Store::Image(_) => (0, 0),
            Store::Scratch(_) => (u64::from(MAX_DISCARD), u64::from(MAX_ZEROES)),
        };
        Limits {
            capacity: self.capacity,
            transfer: MAX_TRANSFER,
            discard: discard * SECTOR,
            zeroes: zeroes * SECTOR,
        }
    }

    /// Answers one request.
    fn answer(&mut self, chain: &Chain, ram: &GuestRam) -> Result<Served, QueueError> {
        // The last writable byte is the status; without it nothing can be said.
        let room = chain
            .writable
            .len()
            .checked_sub(1)
            .ok_or(QueueError::Buffer)?;
        let done = self.try_answer(chain, room, ram);
        let (status, served) = match done {
            Ok(served) => (Status::Ok, served),
            Err(status) => (status, Served::default()),
        };
        chain.writable.write(ram, room, &[status.code()])?;
        // With the data missing, the status is still at the end of the chain; the
        // length only promises what was written from the beginning on.
        Ok(Served {
            written: served.written + u64::from(served.written == room),
            ..served
        })
    }

    fn try_answer(&mut self, chain: &Chain, room: u64, ram: &GuestRam) -> Result<Served, Status> {
        let (header, data) = read_request(chain, room, ram)?;
        let mut served = Served::default();
        match (parse(header, data, self.limits())?, &mut self.store) {
            (Request::Read(range), store) => {
                served = Served::written(range.end - range.start);
                store.read(range, &chain.writable, ram)?;
            }
            (Request::GetId { room }, _) => {
                let room = usize::try_from(room).unwrap_or(ID_SIZE).min(ID_SIZE);
                let name = self.name.get(..room).unwrap_or_default();
                chain.writable.write(ram, 0, name)?;
                served = Served::written(u64::try_from(room).unwrap_or(0));
            }
            // There is nothing that could be lost.
            (Request::Flush, Store::Image(_)) => {}
            (Request::Flush, Store::Scratch(scratch)) => scratch.flush()?,
            (Request::Write(range), Store::Scratch(scratch)) => {
                served.moved = range.end - range.start;
                let skip = u64::try_from(HEADER_SIZE).unwrap_or(0);
                scratch.write(range, &chain.readable, skip, ram)?;
            }
            (Request::Discard(range), Store::Scratch(scratch)) => scratch.discard(&range)?,
            (Request::WriteZeroes { range, unmap }, Store::Scratch(scratch)) => {
                served.moved = range.end - range.start;
                scratch.zero(range, unmap)?;
            }
            (_, Store::Image(_)) => return Err(Status::IoError),
        }
        Ok(served)
    }
}

impl Store {
    /// Reads into the guest, all or an error.
    fn read(&self, range: Range<u64>, to: &Buffers, ram: &GuestRam) -> Result<(), Status> {
        match self {
            Self::Image(image) => read(image, range, to, 0, ram),
            Self::Scratch(scratch) => {
                let begin = range.start;
                scratch.pieces(range).try_for_each(|(file, piece)| {
                    let skip = piece.start - begin;
                    read(file, piece, to, skip, ram)
                })
            }
        }
    }
}

/// Reads `range` of `file` into the guest's buffers, from their byte `skip` on.
fn read(
    file: &File,
    range: Range<u64>,
    to: &Buffers,
    skip: u64,
    ram: &GuestRam,
) -> Result<(), Status> {
    let mut at = range.start;
    while at < range.end {
        let skip = skip + (at - range.start);
        let slices = to.slices(ram, skip, range.end - at, Permissions::Write)?;
        match volatile_io::preadv(file.as_fd(), &slices, at) {
            // The file is shorter than it was.
            Ok(0) => return Err(Status::IoError),
            Ok(read) => at += u64::try_from(read).map_err(|_| Status::IoError)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Status::IoError),
        }
    }
    Ok(())
}

/// Copies what the device has to understand out of a chain.
fn read_request(
    chain: &Chain,
    room: u64,
    ram: &GuestRam,
) -> Result<([u8; HEADER_SIZE], Data), Status> {
    let mut header = [0; HEADER_SIZE];
    chain.readable.read(ram, 0, &mut header)?;
    let header_len = u64::try_from(HEADER_SIZE).unwrap_or(0);
    let given = chain.readable.len().saturating_sub(header_len);
    let mut segment = [0; SEGMENT_SIZE];
    let read = chain.readable.read(ram, header_len, &mut segment);
    let data = Data {
        given,
        segment: read.ok().map(|()| segment),
        room,
    };
    Ok((header, data))
}

fn name(index: usize) -> [u8; ID_SIZE] {
    let mut name = [0; ID_SIZE];
    for (byte, value) in name.iter_mut().zip(format!("{ID}{index}").bytes()) {
        *byte = value;
    }
    name
}

impl From<QueueError> for Status {
    fn from(_: QueueError) -> Self {
        Self::IoError
    }
}

impl From<io::Error> for Status {
    fn from(_: io::Error) -> Self {
        Self::IoError
    }
}

impl From<Errno> for Status {
    fn from(_: Errno) -> Self {
        Self::IoError
    }
}

impl VirtioDevice for Block {
    type State = BlockV1;

    const QUEUE_SIZES: &'static [u16] = &[QUEUE_SIZE];

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        let own = match self.store {
            Store::Image(_) => F_RO,
            Store::Scratch(_) => F_FLUSH | F_TOPOLOGY | F_DISCARD | F_WRITE_ZEROES,
        };
        COMMON_FEATURES | F_SEG_MAX | F_SIZE_MAX | own
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let limits = self.limits();
        let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX);
        let ranges = u32::from(self.is_scratch());
        let alignment = CLUSTER_SECTORS * ranges;
        let config = [
            &self.capacity.to_le_bytes()[..],
            &SIZE_MAX.to_le_bytes(),
            &SEG_MAX.to_le_bytes(),
            // Geometry and block size: not offered.
            &[0; 8],
            // Topology: a cluster is written without reading it first.
            &[CLUSTER_EXPONENT, 0],
            &[0; 6],
            // Writeback, number of queues: not offered.
            &[0; 4],
            &sectors(limits.discard).to_le_bytes(),
            &ranges.to_le_bytes(),
            &alignment.to_le_bytes(),
            &sectors(limits.zeroes).to_le_bytes(),
            &ranges.to_le_bytes(),
            // Making zero may unmap.
            &ranges.to_le_bytes(),
        ]
        .concat();
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
            queue.serve(ram, BYTES_PER_CALL, |chain, ram| {
                self.answer(chain, ram).map(Some)
            })
        })
    }

    fn is_quiet(&self) -> bool {
        true
    }

    fn save(&self) -> BlockV1 {
        BlockV1 {
            capacity: self.capacity,
            own_clusters: match &self.store {
                Store::Image(_) => 0,
                Store::Scratch(scratch) => scratch.own_clusters(),
            },
        }
    }

    fn restore(&mut self, state: &BlockV1) -> Result<(), DeviceRestoreError> {
        if state.capacity != self.capacity {
            return Err(DeviceRestoreError::Capacity {
                snapshot: state.capacity,
                machine: self.capacity,
            });
        }
        if state.own_clusters != 0 {
            return Err(DeviceRestoreError::OwnClusters {
                clusters: state.own_clusters,
            });
        }
        match &mut self.store {
            Store::Image(_) => Ok(()),
            Store::Scratch(scratch) => scratch.forget().map_err(DeviceRestoreError::Overlay),
        }
    }
}
