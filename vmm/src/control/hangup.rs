//! The process ends when the agent's end of the control socket closes, whatever
//! its other threads wait for: a vCPU in a page fault that nobody will answer, or
//! the supervisor waiting for that vCPU.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Starts the thread that waits for the end of `control`.
///
/// # Errors
/// When the descriptor cannot be duplicated or the thread not be started.
pub fn exit_on_hangup(control: BorrowedFd<'_>) -> io::Result<()> {
    let control = control.try_clone_to_owned()?;
    std::thread::Builder::new()
        .name("hangup".to_owned())
        .spawn(move || {
            // No flags: only the end, which is always reported.
            let mut fds = [PollFd::from_borrowed_fd(
                control.as_fd(),
                PollFlags::empty(),
            )];
            while let Ok(0) | Err(Errno::INTR) = poll(&mut fds, None) {}
            std::process::exit(0);
        })?;
    Ok(())
}
