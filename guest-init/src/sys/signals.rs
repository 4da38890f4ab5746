//! SIGCHLD as a descriptor that an event loop can wait for.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

/// Blocks SIGCHLD in this thread and returns a signalfd that reports it.
///
/// The program must have no other thread: one without the block would take the
/// signals away.
///
/// # Errors
/// When the kernel has no descriptor left.
pub fn sigchld() -> io::Result<OwnedFd> {
    let set = sigchld_set();
    mask(libc::SIG_BLOCK, &set)?;
    // SAFETY: `set` is initialised and outlives the call, -1 asks for a new
    // descriptor, and the kernel copies the set.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs `spawn` with SIGCHLD unblocked, so that what it starts does not inherit
/// the block (a runtime would then never hear of its own children).
///
/// A SIGCHLD that arrives meanwhile is lost: look for ended children afterwards.
///
/// # Errors
/// When the mask cannot be changed.
pub fn with_sigchld_open<T>(spawn: impl FnOnce() -> T) -> io::Result<T> {
    let set = sigchld_set();
    let before = mask(libc::SIG_UNBLOCK, &set)?;
    let spawned = spawn();
    mask(libc::SIG_SETMASK, &before)?;
    Ok(spawned)
}

fn sigchld_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set that the pointer leads to, so
    // it may be taken as initialised afterwards; sigaddset gets that valid set and
    // a signal number that exists. Neither can fail then.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        set.assume_init()
    }
}

fn mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    let mut before = MaybeUninit::uninit();
    // SAFETY: `set` is a valid set that is only read, `before` is large enough for
    // the set that is written to it.
    let failed = unsafe { libc::pthread_sigmask(how, set, before.as_mut_ptr()) };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    // SAFETY: pthread_sigmask succeeded, so it has filled `before` in.
    Ok(unsafe { before.assume_init() })
}
