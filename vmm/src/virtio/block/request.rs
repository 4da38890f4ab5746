//! What a driver asks of the disk (section 5.2.6): parsing, apart from doing.

/// Bytes of a sector; all positions on the wire are in sectors.
pub(super) const SECTOR: u64 = 512;
/// Bytes of a request's header.
pub(super) const HEADER_SIZE: usize = 16;
/// Bytes of the disk's name in the answer to [`Request::GetId`].
pub(super) const ID_SIZE: usize = 20;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;

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

/// A request that can be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Read `len` bytes from `offset` of the image.
    Read { offset: u64, len: u64 },
    /// Make writes durable: there are none.
    Flush,
    /// The disk's name, cut to `len` bytes.
    GetId { len: u64 },
}

/// Understands a request with room for `data_len` bytes of answer, on a disk of
/// `capacity` sectors. `Err` is the status that the driver gets instead.
pub(super) fn parse(
    header: [u8; HEADER_SIZE],
    data_len: u64,
    capacity: u64,
    max_len: u64,
) -> Result<Request, Status> {
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        T_IN => {
            let sector = u64::from_le_bytes(sector);
            let end = sector
                .checked_add(data_len / SECTOR)
                .ok_or(Status::IoError)?;
            if end > capacity || !data_len.is_multiple_of(SECTOR) || data_len > max_len {
                return Err(Status::IoError);
            }
            // Cannot overflow: `end` sectors are a file's size.
            let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
            Ok(Request::Read {
                offset,
                len: data_len,
            })
        }
        // "Read-only" was offered: a write is an error and changes nothing.
        T_OUT => Err(Status::IoError),
        T_FLUSH => Ok(Request::Flush),
        T_GET_ID => Ok(Request::GetId { len: data_len }),
        _ => Err(Status::Unsupported),
    }
}
