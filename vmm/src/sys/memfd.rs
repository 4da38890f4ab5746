//! Anonymous memory files: guest memory at boot and a snapshot's cache.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, SeekFrom, seek};

/// Makes a memfd of `len` bytes, all holes, whose length nobody can change.
/// `name` shows up in `/proc`.
///
/// # Errors
/// What the kernel reports.
pub fn create(name: &str, len: u64) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, len)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Opens the same memfd again, for reading only: whoever gets this descriptor
/// can map it privately but not write to what others map. Needs `/proc`.
///
/// # Errors
/// What the kernel reports.
pub fn read_only(memfd: impl AsFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", memfd.as_fd().as_raw_fd());
    Ok(rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Makes a memfd of these bytes, which nobody can change any more.
///
/// # Errors
/// What the kernel reports.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut written = 0;
    while written < bytes.len() {
        written += rustix::io::write(&fd, &bytes[written..])?;
    }
    rustix::fs::fcntl_add_seals(&fd, IMMUTABLE | SealFlags::SEAL)?;
    Ok(fd)
}

/// Whether a file is a memfd that nobody can change any more.
pub fn is_sealed(file: impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(IMMUTABLE))
}

/// Size of a huge page, in bytes.
pub const HUGE_PAGE: usize = 2 << 20;

/// Puts the pages of a memfd from `offset` on, a multiple of [`HUGE_PAGE`], together to one
/// huge page; holes among them become zeroes. Whoever maps them keeps what it sees.
///
/// # Errors
/// What the kernel reports, for example where it has no huge pages.
pub fn collapse(memfd: impl AsFd, offset: u64) -> io::Result<()> {
    let at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // Twice the length has a huge page's place in it.
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no
    // existing memory.
    let room = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(
            ptr::null_mut(),
            2 * HUGE_PAGE,
            libc::PROT_NONE,
            flags,
            -1,
            0,
        )
    };
    if room == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let place = room.addr().next_multiple_of(HUGE_PAGE);
    // SAFETY: MAP_FIXED replaces a part of the mapping that was just made and that nobody
    // else knows; MADV_COLLAPSE changes how the file's pages lie in memory, not what they
    // hold; and the whole of the mapping is gone before anybody else can know it.
    unsafe {
        let place = room.with_addr(place);
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let fd = memfd.as_fd().as_raw_fd();
        let mapped = libc::mmap(place, HUGE_PAGE, libc::PROT_READ, flags, fd, at);
        let collapsed = if mapped == libc::MAP_FAILED {
            -1
        } else {
            libc::madvise(place, HUGE_PAGE, MADV_COLLAPSE)
        };
        let error = io::Error::last_os_error();
        libc::munmap(room, 2 * HUGE_PAGE);
        if collapsed < 0 { Err(error) } else { Ok(()) }
    }
}

/// `MADV_COLLAPSE` (Linux 6.1; `include/uapi/asm-generic/mman-common.h`).
pub(super) const MADV_COLLAPSE: libc::c_int = 25;

const IMMUTABLE: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// The next range of a file that is no hole, from `at` on, below `len`.
///
/// # Errors
/// When the file cannot tell.
pub fn data_after(file: impl AsFd, at: u64, len: u64) -> io::Result<Option<Range<u64>>> {
    if at >= len {
        return Ok(None);
    }
    let start = match seek(&file, SeekFrom::Data(at)) {
        Ok(start) if start < len => start,
        Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let end = seek(&file, SeekFrom::Hole(start))?.min(len);
    Ok(Some(start..end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_fixed() {
        let fd = create("test", 8192).unwrap();
        assert!(rustix::fs::ftruncate(&fd, 4096).is_err());
        assert!(rustix::fs::ftruncate(&fd, 16384).is_err());
        assert_eq!(rustix::io::pwrite(&fd, b"x", 4096).unwrap(), 1);
    }

    #[test]
    fn a_sealed_file_cannot_be_changed_and_is_known_as_such() {
        let fd = sealed("test", b"content").unwrap();
        assert!(is_sealed(&fd));
        assert!(rustix::io::pwrite(&fd, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&fd, 0).is_err());
        assert!(!is_sealed(create("test", 4096).unwrap()));
        assert!(!is_sealed(tempfile::tempfile().unwrap()));
    }

    #[test]
    fn data_is_found_between_holes() {
        let fd = create("test", 5 * 4096).unwrap();
        assert_eq!(data_after(&fd, 0, 5 * 4096).unwrap(), None);
        for page in [1, 2, 4] {
            rustix::io::pwrite(&fd, b"x", page * 4096).unwrap();
        }
        let next = |at: u64, len: u64| data_after(&fd, at * 4096, len * 4096).unwrap();
        assert_eq!(next(0, 5), Some(4096..3 * 4096));
        assert_eq!(next(2, 5), Some(2 * 4096..3 * 4096));
        assert_eq!(next(3, 5), Some(4 * 4096..5 * 4096));
        assert_eq!(next(3, 4), None, "past the end that was asked for");
        assert_eq!(next(5, 5), None);
    }

    #[test]
    fn a_read_only_copy_cannot_be_written() {
        let fd = create("test", 4096).unwrap();
        let reader = read_only(&fd).unwrap();
        rustix::io::pwrite(&fd, b"seen", 0).unwrap();
        let mut bytes = [0; 4];
        rustix::io::pread(&reader, &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"seen");
        assert!(rustix::io::pwrite(&reader, b"no", 0).is_err());
    }
}
