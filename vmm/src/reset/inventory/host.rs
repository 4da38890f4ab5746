//! What the VMM keeps for a running guest. All of it is empty in a snapshot.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::supervisor::{Live, discard_notifications};
use crate::sys::fds::event;

/// How a part on the host's side is emptied and compared.
#[derive(Debug, Clone, Copy)]
pub struct HostPart {
    /// Empties it.
    pub restore: fn(&Live),
    /// Says what is in it; nothing is what is wanted.
    pub compare: fn(&Live) -> Vec<String>,
}

/// Doorbells, and work that devices left over.
pub const NOTIFICATIONS: HostPart = HostPart {
    restore: discard_notifications,
    compare: |live| {
        let bells = live
            .doorbells
            .iter()
            .filter(|bell| waits(event(&bell.event)));
        let mut found: Vec<_> = bells
            .map(|bell| {
                format!(
                    "queue {} of device {} was rung for",
                    bell.queue, bell.device
                )
            })
            .collect();
        if waits(event(&live.board.work)) {
            found.push("devices left work over".to_owned());
        }
        found
    },
};

/// Whether an eventfd was written to; one that cannot be asked counts as if.
fn waits(fd: impl AsFd) -> bool {
    let now = Timespec::default();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&now)) != Ok(0)
}
