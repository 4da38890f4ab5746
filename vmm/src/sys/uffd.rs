//! userfaultfd: both ends of lazily paged guest memory.
//!
//! ```text
//!  VMM:    from_device ─► register_missing ─► as_fd ──► (descriptor to the agent)
//!  agent:  from_owned_fd ─► read_events ─► … fill the page … ─► wake
//! ```
//!
//! Guest memory is a private mapping of a memfd. A page that the memfd does not
//! hold yet is a *missing* fault; the agent fills the memfd and wakes the fault,
//! which then finds the page. Nothing that is missing is ever copied into the mapping
//! itself: `UFFDIO_COPY` makes a private copy and loses the sharing. That is what it is
//! used for where a private copy is wanted ([`Uffd::copy`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, ReadWriteFlags};

use super::fds::set_nonblocking;

const UFFD_API: u64 = 0xaa;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const UFFDIO_COPY_MODE_DONTWAKE: u64 = 1;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFD_PAGEFAULT_FLAG_WRITE: u64 = 1;

/// Bit numbers in the `ioctls` mask that a registration answers.
const UFFDIO_WAKE_BIT: u64 = 1 << 0x02;

/// `_IO(0xaa, 0x00)`: a new userfaultfd from `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOR(0xaa, 0x01, struct uffdio_range)`.
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
/// `_IOR(0xaa, 0x02, struct uffdio_range)`.
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
/// `_IOWR(0xaa, 0x03, struct uffdio_copy)`.
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    /// Bytes that were copied, or a negative error.
    copy: i64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

/// Size of the kernel's `struct uffd_msg`, in bytes.
const MESSAGE_LEN: usize = 32;

// The sizes are part of the ioctl numbers above.
const _: () = assert!(size_of::<UffdioApi>() == 24);
const _: () = assert!(size_of::<UffdioRange>() == 16);
const _: () = assert!(size_of::<UffdioRegister>() == 32);
const _: () = assert!((UFFDIO_API >> 16) & 0x3fff == 24);
const _: () = assert!((UFFDIO_WAKE >> 16) & 0x3fff == 16);
const _: () = assert!((UFFDIO_REGISTER >> 16) & 0x3fff == 32);
const _: () = assert!(size_of::<UffdioCopy>() == 40);
const _: () = assert!((UFFDIO_COPY >> 16) & 0x3fff == 40);
const _: () = assert!((UFFDIO_UNREGISTER >> 16) & 0x3fff == 16);

/// Most faults that one [`Uffd::read_events`] returns.
pub const MAX_EVENTS: usize = 64;

/// A page that somebody waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fault {
    /// Where in the faulting process's address space, rounded down to a page.
    pub address: u64,
    /// Whether the access was a write.
    pub write: bool,
}

/// An open userfaultfd: non-blocking and close-on-exec.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// Makes a userfaultfd for the calling process from `/dev/userfaultfd` and
    /// shakes hands with the kernel. Faults raised by the kernel itself (KVM)
    /// are handled too.
    ///
    /// # Errors
    /// What the kernel reports, for example `ENOTTY` when `device` is something
    /// else.
    pub fn from_device(device: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: this request takes flags by value and touches no memory of ours.
        let fd = unsafe {
            libc::ioctl(
                device.as_raw_fd(),
                USERFAULTFD_IOC_NEW,
                libc::O_CLOEXEC | libc::O_NONBLOCK,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        let uffd = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut api = UffdioApi {
            api: UFFD_API,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: `api` is the struct of this request and outlives the call.
        check(unsafe { libc::ioctl(uffd.0.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
        Ok(uffd)
    }

    /// Takes over a userfaultfd that another process made and shook hands on,
    /// and makes it non-blocking.
    ///
    /// # Errors
    /// When the descriptor's flags cannot be set.
    pub fn from_owned_fd(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self(fd))
    }

    /// A second descriptor of the same userfaultfd: while it is open, missing
    /// pages stay missing even when the other end has closed.
    ///
    /// # Errors
    /// When no further descriptor can be had.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Asks for the missing faults of a mapped range of the calling process.
    /// Both numbers are in bytes and multiples of the page size.
    ///
    /// # Errors
    /// What the kernel reports; `Unsupported` when it cannot wake faults of this
    /// kind of mapping.
    pub fn register_missing(&self, address: u64, len: u64) -> io::Result<()> {
        let mut register = UffdioRegister {
            range: UffdioRange {
                start: address,
                len,
            },
            mode: UFFDIO_REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: `register` is the struct of this request and outlives the call.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) })?;
        if register.ioctls & UFFDIO_WAKE_BIT == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(())
    }

    /// No longer asks for the missing faults of a range; whoever waits for one tries
    /// again. Both numbers are in bytes and multiples of the page size.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn unregister(&self, address: u64, len: u64) -> io::Result<()> {
        let mut range = UffdioRange {
            start: address,
            len,
        };
        // SAFETY: `range` is the struct of this request and outlives the call.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER, &raw mut range) })
    }

    /// Copies `len` bytes from `from` to missing pages at `to`, in a private mapping that
    /// is registered: they are anonymous pages then. Returns how many bytes were copied
    /// before a page was found that is not missing. Wakes nobody.
    ///
    /// # Errors
    /// What the kernel reports.
    ///
    /// # Safety
    /// `to` and `from` are the starts of `len` bytes each, in whole pages, of two mappings
    /// that stay; no Rust reference leads to those at `to`.
    pub(super) unsafe fn copy(&self, to: u64, from: u64, len: u64) -> io::Result<u64> {
        let mut copy = UffdioCopy {
            dst: to,
            src: from,
            len,
            mode: UFFDIO_COPY_MODE_DONTWAKE,
            copy: 0,
        };
        // SAFETY: `copy` is the struct of this request and outlives the call; the caller
        // vouches for the memory that it names.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY, &raw mut copy) };
        let copied = u64::try_from(copy.copy).unwrap_or(0);
        match check(done) {
            Ok(()) => Ok(copied),
            // Part of it, or nothing: a page is there already.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EEXIST)) => {
                Ok(copied)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes waiting faults off the queue and returns how many there were; 0
    /// when none waits. Messages that are no faults are skipped.
    ///
    /// # Errors
    /// What the kernel reports, and `UnexpectedEof` or `InvalidData` when the
    /// descriptor does not speak userfaultfd.
    pub fn read_events(&self, faults: &mut [Fault]) -> io::Result<usize> {
        let mut bytes = [0_u8; MESSAGE_LEN * MAX_EVENTS];
        let room = faults.len().min(MAX_EVENTS) * MESSAGE_LEN;
        let read = match read_now(&self.0, &mut bytes[..room]) {
            Ok(0) if room > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(Errno::AGAIN) => return Ok(0),
            Err(errno) => return Err(errno.into()),
        };
        let (messages, rest) = bytes[..read].as_chunks::<MESSAGE_LEN>();
        if !rest.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut count = 0;
        for (slot, fault) in faults.iter_mut().zip(messages.iter().filter_map(parse)) {
            *slot = fault;
            count += 1;
        }
        Ok(count)
    }

    /// Lets whoever waits for a page of this range try again. Both numbers are
    /// in bytes of the faulting process's address space and multiples of the
    /// page size.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn wake(&self, address: u64, len: u64) -> io::Result<()> {
        let mut range = UffdioRange {
            start: address,
            len,
        };
        // SAFETY: `range` is the struct of this request and outlives the call.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WAKE, &raw mut range) })
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads what is there, and never waits: whoever shares the descriptor may have made it
/// blocking meanwhile. Kernels before 6.10 know no such read of a userfaultfd; there,
/// only the jail's filter stands in the way.
fn read_now(fd: &OwnedFd, bytes: &mut [u8]) -> Result<usize, Errno> {
    let here = u64::MAX;
    let mut parts = [io::IoSliceMut::new(bytes)];
    match rustix::io::preadv2(fd, &mut parts, here, ReadWriteFlags::NOWAIT) {
        Err(Errno::OPNOTSUPP) => rustix::io::read(fd, bytes),
        read => read,
    }
}

/// `struct uffd_msg`: event, 7 reserved bytes, then for a fault flags, address.
fn parse(message: &[u8; MESSAGE_LEN]) -> Option<Fault> {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    (message[0] == UFFD_EVENT_PAGEFAULT).then(|| Fault {
        address: word(16),
        write: word(8) & UFFD_PAGEFAULT_FLAG_WRITE != 0,
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
    fn a_fault_is_read_from_the_kernels_layout() {
        let mut message = [0; MESSAGE_LEN];
        message[0] = UFFD_EVENT_PAGEFAULT;
        message[8] = 1;
        message[16..24].copy_from_slice(&0x7f00_1234_5000_u64.to_ne_bytes());
        assert_eq!(
            parse(&message),
            Some(Fault {
                address: 0x7f00_1234_5000,
                write: true
            })
        );
        message[0] = 0x13;
        assert_eq!(parse(&message), None);
    }

    #[test]
    fn something_else_than_the_device_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(Uffd::from_device(null.as_fd()).is_err());
    }

    #[test]
    fn an_end_of_file_is_not_an_empty_queue() {
        let uffd = Uffd::from_owned_fd(std::fs::File::open("/dev/null").unwrap().into()).unwrap();
        let mut faults = [Fault::default(); 4];
        assert_eq!(
            uffd.read_events(&mut faults).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
