//! userfaultfd, tried the way guest memory uses it: a private mapping of a memfd,
//! holes filled through the memfd, faults woken. One fault is taken by a program,
//! one by the kernel itself (`pread(2)` into the page), as KVM takes them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use snapback_proto::words::chain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{Check, Need};
use crate::memory::{GuestRam, PAGE_SIZE};
use crate::sys::mapping::{Reservation, Sharing};
use crate::sys::uffd::{Fault, Uffd};
use crate::sys::{memfd, volatile_io};

const DEVICE: &str = "/dev/userfaultfd";
/// How long both faults may take.
const LIMIT: Duration = Duration::from_secs(2);
const FILL: u8 = 0x5a;
const PAGES: usize = 2;

/// Why lazily paged memory does not work.
#[derive(Debug, thiserror::Error)]
enum PagingError {
    #[error("{DEVICE} does not open")]
    Open(#[source] io::Error),
    #[error("{0} failed")]
    Step(&'static str, #[source] io::Error),
    #[error("a page read as {0:#x} instead of what it was filled with")]
    Content(u8),
    #[error("a missing page was not reported within {} s", LIMIT.as_secs())]
    Slow,
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> PagingError {
    move |error| PagingError::Step(what, error.into())
}

/// The check.
pub(super) fn check() -> Check {
    let outcome = match try_paging() {
        Ok(()) => {
            Ok("missing pages of programs and of the kernel are reported and filled".to_owned())
        }
        Err(error) => Err(chain(&error)),
    };
    super::check(
        "userfaultfd",
        Need::Required,
        outcome,
        "run a kernel of 6.1 or newer with CONFIG_USERFAULTFD, and give this user read and write \
         access to /dev/userfaultfd",
    )
}

fn try_paging() -> Result<(), PagingError> {
    let device = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(PagingError::Open)?;
    let uffd = Uffd::from_device(device.as_fd()).map_err(step("making a userfaultfd"))?;
    let memory = Reservation::new(PAGES * PAGE_SIZE).map_err(step("reserving memory"))?;
    let (address, len) = memory.range().map_err(step("reserving memory"))?;
    let file = memfd::create("probe-paging", len).map_err(step("making a memfd"))?;
    memory
        .map(file.as_fd(), 0, Sharing::Private)
        .map_err(step("mapping a memfd"))?;
    let region = memory
        .region(GuestAddress(0))
        .map_err(step("mapping a memfd"))?;
    let ram = GuestMemoryMmap::from_regions(vec![region])
        .map_err(|error| step("mapping a memfd")(io::Error::other(error)))?;
    uffd.register_missing(address, len)
        .map_err(step("registering a mapping"))?;

    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || {
            // Nobody listens any more when it took too long.
            let _ = sender.send(touch(&ram));
        })
        .map_err(step("starting a thread"))?;
    // Whatever happens, the userfaultfd is closed when this returns, which lets
    // the toucher go.
    serve(&uffd, &file, address, &receiver)
}

/// Takes one fault in this program and one in the kernel.
fn touch(ram: &GuestRam) -> Result<(), PagingError> {
    let seen: u8 = ram
        .read_obj(GuestAddress(0))
        .map_err(|error| step("reading a page")(io::Error::other(error)))?;
    if seen != FILL {
        return Err(PagingError::Content(seen));
    }
    let source = memfd::create("probe-source", 1).map_err(step("making a memfd"))?;
    rustix::io::pwrite(&source, b"k", 0).map_err(step("writing to a memfd"))?;
    let second = GuestAddress(u64::try_from(PAGE_SIZE).unwrap_or(0));
    let slice = ram
        .get_slice(second, 1)
        .map_err(|error| step("finding a page")(io::Error::other(error)))?;
    volatile_io::preadv(source.as_fd(), &[slice], 0).map_err(step("reading a file into a page"))?;
    // The kernel wrote the first byte; the rest is what the page was filled with.
    let around: [u8; 2] = ram
        .read_obj(second)
        .map_err(|error| step("reading a page")(io::Error::other(error)))?;
    match around {
        [b'k', FILL] => Ok(()),
        [_, other] => Err(PagingError::Content(other)),
    }
}

/// Answers faults until the toucher is done.
fn serve(
    uffd: &Uffd,
    file: &OwnedFd,
    address: u64,
    toucher: &mpsc::Receiver<Result<(), PagingError>>,
) -> Result<(), PagingError> {
    let start = Instant::now();
    let page_len = u64::try_from(PAGE_SIZE).unwrap_or(4096);
    while start.elapsed() < LIMIT {
        if let Ok(ended) = toucher.try_recv() {
            return ended;
        }
        let mut polled = [PollFd::new(uffd, PollFlags::IN)];
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        match rustix::event::poll(&mut polled, Some(&pause)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(step("waiting for a fault")(errno)),
        }
        let mut faults = [Fault::default(); PAGES];
        let count = uffd
            .read_events(&mut faults)
            .map_err(step("reading a fault"))?;
        for fault in &faults[..count] {
            let page = fault.address & !(page_len - 1);
            let offset = page.wrapping_sub(address);
            rustix::io::pwrite(file, &[FILL; PAGE_SIZE], offset).map_err(step("filling a page"))?;
            uffd.wake(page, page_len).map_err(step("waking a fault"))?;
        }
    }
    Err(PagingError::Slow)
}
