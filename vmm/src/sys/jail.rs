//! Mounts, namespaces and the heap, for the jail.

use std::ffi::{CStr, CString};
use std::io;
use std::ptr;

use rustix::thread::UnshareFlags;

/// Leaves the namespaces that `flags` name for new ones: the calling thread does, and with
/// `NEWPID` its next child.
///
/// # Errors
/// `InvalidInput` for flags that are no namespaces, else what `unshare(2)` reports.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    let namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWUSER;
    if !namespaces.contains(flags) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the call is only dangerous with CLONE_FILES, which gives threads
    // different descriptor tables; that flag was just excluded.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Keeps later changes of this namespace's mounts from the host, and the other way
/// round.
///
/// # Errors
/// What `mount(2)` reports.
pub fn make_mounts_private() -> io::Result<()> {
    mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)
}

/// Mounts an empty tmpfs of one page, without devices, programs and set-uid, at
/// `target`.
///
/// # Errors
/// What `mount(2)` reports.
pub fn mount_tmpfs(target: &str) -> io::Result<()> {
    let flags = libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_NOSUID;
    mount(
        c"empty",
        &CString::new(target)?,
        Some(c"tmpfs"),
        flags,
        Some(c"size=4k,mode=555"),
    )
}

/// Makes the mount at `target` read-only.
///
/// # Errors
/// What `mount(2)` reports.
pub fn make_read_only(target: &str) -> io::Result<()> {
    let flags = libc::MS_REMOUNT
        | libc::MS_BIND
        | libc::MS_RDONLY
        | libc::MS_NODEV
        | libc::MS_NOEXEC
        | libc::MS_NOSUID;
    mount(c"none", &CString::new(target)?, None, flags, None)
}

/// Unmounts what is mounted at `target`, with everything below.
///
/// # Errors
/// What `umount2(2)` reports.
pub fn detach(target: &str) -> io::Result<()> {
    let target = CString::new(target)?;
    // SAFETY: `target` is a string with its terminator and outlives the call, which
    // only reads it.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) })
}

/// Keeps the C library from making a heap for each thread. Only heaps after the
/// first are ever shrunk in a way that reads `/proc`.
pub fn use_one_heap() {
    // SAFETY: the call takes two numbers. It fails only for unknown parameters,
    // which leaves the allocator as it was.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

fn mount(
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null, where mount(2) allows it, or leads to a string
    // with its terminator that outlives the call, which only reads them.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            pointer(kind),
            flags,
            pointer(options).cast(),
        )
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_tables_are_never_unshared() {
        let error = unshare(UnshareFlags::NEWNS | UnshareFlags::FILES).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
