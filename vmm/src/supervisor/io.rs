//! Serving a guest's devices: doorbells, the invocation channel, and work that a
//! device left over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

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

/// Waits until something happens, and serves the devices if it was theirs.
///
/// # Errors
/// What the kernel reports.
pub fn wait(control: BorrowedFd<'_>, live: Option<&Live>) -> io::Result<Wake> {
    let mut fds = vec![PollFd::from_borrowed_fd(control, PollFlags::IN)];
    let mut channel = false;
    if let Some(live) = live {
        let events = [&live.stopped, &*live.board.work].into_iter();
        let events = events.chain(live.doorbells.iter().map(|bell| &bell.event));
        fds.extend(events.map(|e| PollFd::from_borrowed_fd(event(e), PollFlags::IN)));
        if let Some((socket, flags)) = channel_interest(live) {
            fds.push(PollFd::from_borrowed_fd(socket, flags));
            channel = true;
        }
    }
    match poll(&mut fds, None) {
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
        let bells = ready.get(3..).unwrap_or_default();
        serve_doorbells(live, |index| bells.get(index).copied().unwrap_or(false))?;
        if at(2) || (channel && ready.last() == Some(&true)) {
            serve_hosts(live)?;
        }
    }
    Ok(wake)
}

fn channel_interest(live: &Live) -> Option<(BorrowedFd<'_>, PollFlags)> {
    let bus = live.board.bus();
    let interest = bus.poll_interest()?;
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, interest.readable);
    flags.set(PollFlags::OUT, interest.writable);
    Some((live.channel.as_ref()?.as_fd(), flags))
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

/// Moves what can be moved between devices and their host ends, and goes on with
/// work left over.
fn serve_hosts(live: &Live) -> io::Result<()> {
    let _ = live.board.work.read();
    let effects = live.board.bus().continue_work(&live.board.ram);
    apply(live, effects)?;
    let effects = live.board.bus().host_ready(&live.board.ram);
    apply(live, effects)
}

fn apply(live: &Live, effects: Effects) -> io::Result<()> {
    live.board.pulse(effects)?;
    if effects.more_work {
        live.board.work.write(1)?;
    }
    Ok(())
}

/// Lets the host ends of a guest that is about to run make progress.
///
/// # Errors
/// What the kernel reports.
pub fn nudge(live: &Live) -> io::Result<()> {
    serve_hosts(live)
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
    for bell in &live.doorbells {
        // Empty is what is wanted.
        let _ = bell.event.read();
    }
    let _ = live.board.work.read();
}
