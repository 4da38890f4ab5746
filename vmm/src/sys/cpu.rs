//! Where a thread is.

use std::io;

/// The processor that the calling thread runs on now, by its number. The C library knows
/// it without a system call.
///
/// # Errors
/// What the kernel reports.
pub fn current() -> io::Result<usize> {
    // SAFETY: the call takes no argument and touches no memory of ours.
    let cpu = unsafe { libc::sched_getcpu() };
    usize::try_from(cpu).map_err(|_| io::Error::last_os_error())
}
