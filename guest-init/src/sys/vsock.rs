//! A vsock stream to the host.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Connects a stream to `port` on the host.
///
/// # Errors
/// When there is no vsock device or nobody listens.
pub fn connect_to_host(port: u32) -> io::Result<OwnedFd> {
    let family = AddressFamily::VSOCK;
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;

    // SAFETY: sockaddr_vm is a plain C structure of integers, for which all zeroes
    // is a valid value.
    let mut address: libc::sockaddr_vm = unsafe { MaybeUninit::zeroed().assume_init() };
    address.svm_family = family.as_raw();
    address.svm_cid = libc::VMADDR_CID_HOST;
    address.svm_port = port;
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;

    // SAFETY: the pointer leads to a complete sockaddr_vm and `length` is its size;
    // the kernel reads that much and keeps nothing. The descriptor is open.
    let failed = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}
