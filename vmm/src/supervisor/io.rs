//! Serving a guest's devices: doorbells, their host ends, and work that a device
//! left over.

use std::io;
use std::iter::once;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

use super::Live;
use crate::bus::Effects;
use crate::sys::fds::event;

/// What woke the supervisor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wake {
    /// The agent has something to say, or is gone.
    pub control: bool,
    /// A vCPU left its guest.
    pub stopped: bool,
}

/// Waits until something happens, at most `limit`, and serves the devices if it was theirs.
///
/// # Errors
/// What the kernel reports.
pub fn wait(
    control: BorrowedFd<'_>,
    live: Option<&Live>,
    limit: Option<Timespec>,
) -> io::Result<Wake> {
    let mut fds = vec![PollFd::from_borrowed_fd(control, PollFlags::IN)];
    if let Some(live) = live {
        let own = [
            event(&live.stopped),
            event(&live.board.work),
            live.poll.as_fd(),
        ];
        let bells = live.doorbells.iter().map(|bell| event(&bell.event));
        let all = own.into_iter().chain(bells);
        fds.extend(all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    }
    match poll(&mut fds, limit.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Wake::default()),
        Err(errno) => return Err(errno.into()),
    }
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    drop(fds);
    let at = |index: usize| ready.get(index).copied().unwrap_or(false);
    let wake = Wake {
        control: at(0),
        stopped: at(1),
    };
    if let Some(live) = live {
        let bells = ready.get(4..).unwrap_or_default();
        serve_doorbells(live, |index| bells.get(index).copied().unwrap_or(false))?;
        if at(2) {
            continue_work(live)?;
        }
        if at(3) {
            serve_hosts(live)?;
        }
    }
    Ok(wake)
}

/// Serves the queues whose doorbell rang.
fn serve_doorbells(live: &Live, rang: impl Fn(usize) -> bool) -> io::Result<bool> {
    let mut served = false;
    for (index, bell) in live.doorbells.iter().enumerate() {
        // A doorbell that another wake-up has emptied already is no news.
        if rang(index) && bell.event.read().is_ok() {
            let effects = live
                .board
                .bus()
                .queue_notify(bell.device, bell.queue, &live.board.ram);
            apply(live, effects)?;
            served = true;
        }
    }
    Ok(served)
}

/// Goes on with work left over.
fn continue_work(live: &Live) -> io::Result<()> {
    let _ = live.board.work.read();
    let effects = live.board.bus().continue_work(&live.board.ram);
    apply(live, effects)
}

/// Lets the devices whose host ends are ready move what can be moved.
fn serve_hosts(live: &Live) -> io::Result<()> {
    // A vCPU's thread may close some of them in between: the devices know.
    let ready = live.poll.ready()?;
    let effects = live.board.bus().host_ready(&ready, &live.board.ram);
    apply(live, effects)
}

fn apply(live: &Live, effects: Effects) -> io::Result<()> {
    live.board.pulse(effects)?;
    if effects.more_work {
        live.board.work.write(1)?;
    }
    Ok(())
}

/// Finishes what a stopped guest has asked its devices for, until nothing is in
/// flight. Returns whether that was reached within `rounds`, which are a few
/// milliseconds apart.
///
/// # Errors
/// What the kernel reports.
pub fn quiesce(live: &Live, rounds: u32) -> io::Result<bool> {
    const PAUSE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 5_000_000,
    };
    for _ in 0..rounds {
        let served = serve_doorbells(live, |_| true)?;
        continue_work(live)?;
        serve_hosts(live)?;
        if !served && live.board.bus().is_quiet() {
            return Ok(true);
        }
        // A signal that cuts the pause short only makes the next round come sooner.
        let _ = rustix::thread::nanosleep(&PAUSE);
    }
    Ok(false)
}

/// Forgets notifications of a stopped guest that is being put back.
pub fn discard_notifications(live: &Live) {
    let bells = live.doorbells.iter().map(|bell| &bell.event);
    let events: Vec<&EventFd> = bells.chain(once(&*live.board.work)).collect();
    let watched = events.iter().map(|of| event(of));
    let mut fds: Vec<PollFd<'_>> = watched
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    // One call instead of a read of each: most are empty. Where it fails, each is read.
    let asked = poll(&mut fds, Some(&Timespec::default())).is_ok();
    for (event, fd) in events.iter().zip(&fds) {
        if !asked || !fd.revents().is_empty() {
            // Empty is what is wanted.
            let _ = event.read();
        }
    }
}
