//! What a driver asks of the disk (section 5.2.6): parsing, apart from doing.

use std::ops::Range;

/// Bytes of a sector; all positions on the wire are in sectors.
pub(super) const SECTOR: u64 = 512;
/// Bytes of a request's header.
pub(super) const HEADER_SIZE: usize = 16;
/// Bytes of the disk's name in the answer to [`Request::GetId`].
pub(super) const ID_SIZE: usize = 20;
/// Bytes of a range of sectors to discard or to make zero.
pub(super) const SEGMENT_SIZE: usize = 16;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// Flag of a segment: the range may give up its space.
const UNMAP: u32 = 1;

/// How a request ended; the byte at the end of its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    pub(super) fn code(self) -> u8 {
        match self {
            Status::Ok => 0,
            Status::IoError => 1,
            Status::Unsupported => 2,
        }
    }
}

/// What the disk can do, and how much of it at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Sectors of the disk.
    pub capacity: u64,
    /// Most bytes of one read or write.
    pub transfer: u64,
    /// Most bytes of one range to discard; 0 when nothing can be written at all.
    pub discard: u64,
    /// Most bytes of one range to make zero.
    pub zeroes: u64,
}

/// The bytes behind a request's header, as they lie in its chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Data {
    /// Bytes that the driver gave.
    pub given: u64,
    /// The first of them, as far as they are there.
    pub segment: Option<[u8; SEGMENT_SIZE]>,
    /// Bytes of room for an answer, without the status.
    pub room: u64,
}

/// A request that can be tried; ranges are in bytes and inside the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// Read.
    Read(Range<u64>),
    /// Write.
    Write(Range<u64>),
    /// Make writes durable.
    Flush,
    /// The disk's name, cut to `room` bytes.
    GetId { room: u64 },
    /// What is there is no longer needed.
    Discard(Range<u64>),
    /// Make it zero.
    WriteZeroes {
        /// What.
        range: Range<u64>,
        /// Whether it may give up its space.
        unmap: bool,
    },
}

/// Understands a request. `Err` is the status that the driver gets instead.
pub(super) fn parse(
    header: [u8; HEADER_SIZE],
    data: Data,
    limits: Limits,
) -> Result<Request, Status> {
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let transfer = |len: u64| {
        if !len.is_multiple_of(SECTOR) || len > limits.transfer {
            return Err(Status::IoError);
        }
        bytes(sector, len / SECTOR, limits.capacity)
    };
    let writable = limits.discard > 0;
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        T_IN => transfer(data.room).map(Request::Read),
        T_OUT if writable => transfer(data.given).map(Request::Write),
        // "Read-only" was offered: a write is an error and changes nothing.
        T_OUT => Err(Status::IoError),
        T_FLUSH => Ok(Request::Flush),
        T_GET_ID => Ok(Request::GetId { room: data.room }),
        T_DISCARD if writable => {
            let (range, flags) = segment(data, limits.discard, limits.capacity)?;
            // Even "unmap" is a flag that a discard must not have.
            if flags != 0 {
                return Err(Status::Unsupported);
            }
            Ok(Request::Discard(range))
        }
        T_WRITE_ZEROES if writable => {
            let (range, flags) = segment(data, limits.zeroes, limits.capacity)?;
            if flags & !UNMAP != 0 {
                return Err(Status::Unsupported);
            }
            let unmap = flags & UNMAP != 0;
            Ok(Request::WriteZeroes { range, unmap })
        }
        _ => Err(Status::Unsupported),
    }
}

/// The one range of sectors that a request may name, and its flags.
fn segment(data: Data, most: u64, capacity: u64) -> Result<(Range<u64>, u32), Status> {
    let expected = u64::try_from(SEGMENT_SIZE).unwrap_or(u64::MAX);
    let segment = data.segment.filter(|_| data.given == expected);
    let [sector @ .., n0, n1, n2, n3, f0, f1, f2, f3] = segment.ok_or(Status::IoError)?;
    let sectors = u64::from(u32::from_le_bytes([n0, n1, n2, n3]));
    if sectors * SECTOR > most {
        return Err(Status::IoError);
    }
    let range = bytes(u64::from_le_bytes(sector), sectors, capacity)?;
    Ok((range, u32::from_le_bytes([f0, f1, f2, f3])))
}

/// `sectors` from `sector` on, in bytes, when the disk of `capacity` sectors has them.
fn bytes(sector: u64, sectors: u64, capacity: u64) -> Result<Range<u64>, Status> {
    let end = sector.checked_add(sectors).ok_or(Status::IoError)?;
    if end > capacity {
        return Err(Status::IoError);
    }
    // Neither can overflow: `end` sectors are at most a file's size.
    let in_bytes = |sectors: u64| sectors.checked_mul(SECTOR).ok_or(Status::IoError);
    Ok(in_bytes(sector)?..in_bytes(end)?)
}
