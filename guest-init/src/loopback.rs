//! The loopback interface: the Runtime API lives on it.

use std::io;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// The index of `lo`, the same in every network namespace.
const LO_INDEX: i32 = 1;

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const IFF_UP: u32 = 1;

const HEADER_LEN: usize = 16;
const REQUEST_LEN: usize = 32;

/// Brings the loopback interface up, with its addresses.
///
/// # Errors
/// When the kernel refuses or answers with something unexpected.
pub fn bring_up() -> io::Result<()> {
    let family = AddressFamily::NETLINK;
    // Protocol 0 is NETLINK_ROUTE, and an unconnected netlink socket talks to the kernel.
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, &request(), SendFlags::empty())?;
    let mut answer = [0; 256];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    acknowledged(&answer[..length.min(256)])
}

/// "Set link 1 up", in netlink's words: `nlmsghdr`, then `ifinfomsg`.
fn request() -> [u8; REQUEST_LEN] {
    let mut bytes = [0; REQUEST_LEN];
    bytes[0..4].copy_from_slice(&32_u32.to_ne_bytes()); // nlmsg_len
    bytes[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes[20..24].copy_from_slice(&LO_INDEX.to_ne_bytes());
    bytes[24..28].copy_from_slice(&IFF_UP.to_ne_bytes()); // ifi_flags
    bytes[28..32].copy_from_slice(&IFF_UP.to_ne_bytes()); // ifi_change
    bytes
}

/// An acknowledgement is an error message with the error 0.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let unexpected = || io::Error::other("the kernel's answer is no acknowledgement");
    let kind = answer
        .get(4..6)
        .and_then(|b| b.try_into().ok())
        .map(u16::from_ne_bytes);
    let code = answer
        .get(HEADER_LEN..HEADER_LEN + 4)
        .and_then(|b| b.try_into().ok());
    match (kind, code.map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(Errno::from_raw_os_error(-code).into()),
        _ => Err(unexpected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_told_from_an_error_and_from_noise() {
        let mut answer = [0_u8; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert!(acknowledged(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        let error = acknowledged(&answer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(acknowledged(&answer[..10]).is_err());
        assert!(acknowledged(&[0; 36]).is_err());
    }
}
