//! Descriptors that a process inherits by number, or that a library hides.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// One bit per descriptor number that was taken already.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Takes ownership of the inherited descriptor `number` (3 to 63) and marks it
/// close-on-exec. A number can be taken once.
///
/// # Errors
/// `InvalidInput` for a number out of range, `AlreadyExists` for one taken
/// before, `EBADF` when nothing was inherited under it.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if !(3..64).contains(&number) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let bit = 1_u64 << number;
    if TAKEN.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // SAFETY: F_SETFD on a number takes no pointer and changes nothing but the
    // descriptor's own flag; an unused number is answered with EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (fcntl succeeded) and nobody else owns it:
    // the program takes its inherited descriptors before it opens anything, and
    // `TAKEN` lets each number through once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes a descriptor non-blocking, in the one way that the jail allows: by a flag that
/// its filter can see, and never back.
///
/// # Errors
/// What the kernel reports.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(())
}

/// An eventfd for polling; vmm-sys-util knows only its number.
#[must_use]
pub fn event(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open for as long as `event` is borrowed, which
    // the returned lifetime is bound to.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
