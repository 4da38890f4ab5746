//! Taps: the host's ends of virtual Ethernet links.
//!
//! The agent makes one and hands it over; a VMM only tells it how much of a frame's
//! work its guest takes over.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What a guest takes over of the frames that it receives.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Offload {
    /// Checksums may be missing.
    pub checksum: bool,
    /// TCP over IPv4 may come in frames larger than the link's; needs `checksum`.
    pub tso4: bool,
}

const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;

impl Offload {
    fn bits(self) -> libc::c_ulong {
        let bit = |wanted: bool, bit| if wanted { bit } else { 0 };
        bit(self.checksum, TUN_F_CSUM | bit(self.tso4, TUN_F_TSO4))
    }
}

/// Attaches `device`, an open `/dev/net/tun`, to the tap `name` of this network
/// namespace, which is made if there is none: whole frames, each behind a virtio-net
/// header.
///
/// # Errors
/// `InvalidInput` for a name that does not fit, else what the kernel reports.
pub fn attach(device: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = empty_request();
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_flags = flags(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
    // SAFETY: the request is a pointer to an `ifreq` that outlives the call, which
    // reads and writes only that.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Whether `tap` is attached to a tap that moves whole frames behind a virtio-net
/// header.
///
/// # Errors
/// What the kernel reports: it is no tap, or not attached.
pub fn has_header(tap: BorrowedFd<'_>) -> io::Result<bool> {
    let mut request = empty_request();
    // SAFETY: as in `attach`.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    let all = flags(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
    // SAFETY: after the call the request holds flags; before it, it was all zero.
    // Either way these bytes are a number.
    let found = unsafe { request.ifr_ifru.ifru_flags };
    Ok(found & all == all)
}

/// Sets the length of the header before each frame, in bytes.
///
/// # Errors
/// What the kernel reports.
pub fn set_header_len(tap: BorrowedFd<'_>, bytes: u8) -> io::Result<()> {
    let bytes = libc::c_int::from(bytes);
    // SAFETY: the kernel reads one `int` from the pointer.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

/// Says what the reader of `tap` takes over.
///
/// # Errors
/// What the kernel reports.
pub fn set_offload(tap: BorrowedFd<'_>, offload: Offload) -> io::Result<()> {
    // SAFETY: the argument is a number, not a pointer.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, offload.bits()) })
}

fn empty_request() -> libc::ifreq {
    // SAFETY: `ifreq` is made of numbers and of pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn flags(bits: libc::c_int) -> io::Result<libc::c_short> {
    libc::c_short::try_from(bits).map_err(io::Error::other)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
