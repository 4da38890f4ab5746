//! Scatter-gather I/O between descriptors and guest memory.
//!
//! Guest memory changes while the host works on it, so it is never turned into a
//! Rust slice: the kernel copies from and to it directly.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Most slices in one call; `IOV_MAX` of Linux.
pub const MAX_SLICES: usize = 1024;

/// Reads from `fd` at `offset` (bytes) into guest memory, as `preadv(2)`, and
/// marks what was written as dirty. Returns the bytes read; 0 at the file's end.
///
/// # Errors
/// What the system call reports; `InvalidInput` for more than [`MAX_SLICES`].
pub fn preadv<B: BitmapSlice>(
    fd: BorrowedFd<'_>,
    slices: &[VolatileSlice<'_, B>],
    offset: u64,
) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let read = with_iovecs(slices, |iov, count| {
        // SAFETY: `iov` points at `count` descriptors of guest memory that
        // `slices` keeps mapped for the whole call. The kernel writes to them
        // without any Rust reference to the bytes existing.
        unsafe { libc::preadv(fd.as_raw_fd(), iov, count, offset) }
    })?;
    mark_dirty(slices, read);
    Ok(read)
}

/// Writes guest memory to `fd` at `offset` (bytes), as `pwritev(2)`. Returns the
/// bytes written.
///
/// # Errors
/// As [`preadv`].
pub fn pwritev<B: BitmapSlice>(
    fd: BorrowedFd<'_>,
    slices: &[VolatileSlice<'_, B>],
    offset: u64,
) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    with_iovecs(slices, |iov, count| {
        // SAFETY: `iov` points at `count` descriptors of guest memory that `slices`
        // keeps mapped for the whole call; the kernel only reads from them.
        unsafe { libc::pwritev(fd.as_raw_fd(), iov, count, offset) }
    })
}

/// Reads from a stream into guest memory, as `readv(2)`, and marks what was
/// written as dirty. Returns the bytes read; 0 at the stream's end.
///
/// # Errors
/// As [`preadv`].
pub fn readv<B: BitmapSlice>(
    fd: BorrowedFd<'_>,
    slices: &[VolatileSlice<'_, B>],
) -> io::Result<usize> {
    let read = with_iovecs(slices, |iov, count| {
        // SAFETY: as in `preadv`.
        unsafe { libc::readv(fd.as_raw_fd(), iov, count) }
    })?;
    mark_dirty(slices, read);
    Ok(read)
}

/// Writes guest memory to a descriptor without positions, as `writev(2)`. Returns the
/// bytes written.
///
/// # Errors
/// As [`preadv`].
pub fn writev<B: BitmapSlice>(
    fd: BorrowedFd<'_>,
    slices: &[VolatileSlice<'_, B>],
) -> io::Result<usize> {
    with_iovecs(slices, |iov, count| {
        // SAFETY: as in `pwritev`.
        unsafe { libc::writev(fd.as_raw_fd(), iov, count) }
    })
}

/// Writes guest memory to a stream, as `sendmsg(2)` with `MSG_NOSIGNAL`, so that
/// a closed peer is an error and not a signal. Returns the bytes written.
///
/// # Errors
/// As [`preadv`].
pub fn send<B: BitmapSlice>(
    socket: BorrowedFd<'_>,
    slices: &[VolatileSlice<'_, B>],
) -> io::Result<usize> {
    with_iovecs(slices, |iov, count| {
        // SAFETY: an all-zero `msghdr` is a valid one (null pointers with zero
        // lengths).
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iov.cast_mut();
        message.msg_iovlen = usize::try_from(count).unwrap_or(0);
        // SAFETY: `message` points at iovecs of guest memory that `slices` keeps
        // mapped for the whole call; the kernel only reads from them.
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }
    })
}

fn with_iovecs<B: BitmapSlice>(
    slices: &[VolatileSlice<'_, B>],
    call: impl FnOnce(*const libc::iovec, libc::c_int) -> libc::ssize_t,
) -> io::Result<usize> {
    if slices.len() > MAX_SLICES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let iovecs: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    let count = libc::c_int::try_from(iovecs.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // A negative result is the only one that does not fit.
    usize::try_from(call(iovecs.as_ptr(), count)).map_err(|_| io::Error::last_os_error())
}

fn mark_dirty<B: BitmapSlice>(slices: &[VolatileSlice<'_, B>], mut written: usize) {
    for slice in slices {
        let here = written.min(slice.len());
        if here == 0 {
            return;
        }
        slice.bitmap().mark_dirty(0, here);
        written -= here;
    }
}
