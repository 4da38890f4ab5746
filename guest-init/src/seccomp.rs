//! No process but guest-init speaks to the host over vsock.
//!
//! Any process may open an `AF_VSOCK` socket, and the host's end of one is the VMM.
//! A filter on `socket` closes that way for this process and all that it starts from
//! now on; the invocation channel is open already. It cannot be gone around: the
//! kernel has no 32-bit or x32 system calls (the filter kills a process that tries)
//! and no io_uring, which could open sockets by itself.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// Marks a system call of the x32 ABI (`asm/unistd.h`).
const X32: i64 = 0x4000_0000;

/// Closes vsock for this thread and every process that it starts from now on.
///
/// # Errors
/// When the kernel refuses.
pub fn deny_vsock() -> io::Result<()> {
    apply_filter(&program()?).map_err(io::Error::other)
}

fn program() -> io::Result<BpfProgram> {
    let family = u64::try_from(libc::AF_VSOCK).map_err(io::Error::other)?;
    let is_vsock = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(io::Error::other)?;
    let calls = [libc::SYS_socket, libc::SYS_socketpair];
    let calls = calls.into_iter().flat_map(|call| [call, call | X32]);
    let rules: BTreeMap<_, _> = calls.map(|call| (call, vec![is_vsock.clone()])).collect();
    // As a kernel without the family answers.
    let refusal = u32::try_from(libc::EAFNOSUPPORT).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(refusal),
        TargetArch::x86_64,
    )
    .map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketType, socket};

    use super::*;

    #[test]
    fn only_vsock_is_denied_and_children_inherit_that() {
        let program = program().unwrap();
        // In a thread of its own: a filter cannot be taken off again.
        let denied = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            apply_filter(&program).unwrap();
            let opened = |family| socket(family, SocketType::STREAM, None).map(drop);
            assert_eq!(opened(AddressFamily::UNIX), Ok(()));
            assert_eq!(opened(AddressFamily::INET), Ok(()));
            let python = std::process::Command::new("python3")
                .args(["-c", "import socket; socket.socket(40, socket.SOCK_STREAM)"])
                .output()
                .unwrap();
            let error = String::from_utf8(python.stderr).unwrap();
            assert!(error.contains("Address family not supported"), "{error}");
            opened(AddressFamily::VSOCK)
        });
        assert_eq!(denied.join().unwrap(), Err(Errno::AFNOSUPPORT));
    }
}
