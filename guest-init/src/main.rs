//! `/init` of the microVM.
//!
//! Boots, serves, and never returns: a PID 1 that exits is a kernel panic. Every
//! failure is written to the console and ends in a restart of the machine, which
//! the VMM takes for what it is: the end of this environment.

use std::convert::Infallible;
use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::getpid;
use rustix::system::{RebootCommand, reboot};
use snapback_guest_init::channel::Channel;
use snapback_guest_init::guest::{Guest, GuestError, Parts};
use snapback_guest_init::mounts::{self, MountError};
use snapback_guest_init::privileges::{self, PrivilegeError};
use snapback_guest_init::process::{Layout, Orphans};
use snapback_guest_init::resume::GuestKernel;
use snapback_guest_init::sandbox::{self, SandboxError};
use snapback_guest_init::{loopback, sys};
use snapback_proto::CHANNEL_PORT;

/// Where Lambda's runtimes find the Runtime API.
const API_PORT: u16 = 9001;

/// How often the host is called before it is taken for absent.
const CONNECT_ATTEMPTS: u32 = 50;
const CONNECT_INTERVAL: Duration = Duration::from_millis(20);

/// Why the guest stops.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("the file systems cannot be put in place")]
    Mounts(#[from] MountError),
    #[error("the loopback interface cannot be brought up")]
    Loopback(#[source] io::Error),
    #[error("the Runtime API cannot listen on port {API_PORT}")]
    Listen(#[source] io::Error),
    #[error("the host does not answer on vsock port {CHANNEL_PORT}")]
    Connect(#[source] io::Error),
    #[error("the kernel does not let guest-init do its work")]
    Kernel(#[source] io::Error),
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Guest(#[from] GuestError),
}

fn main() -> ExitCode {
    if !getpid().is_init() {
        say("guest-init is the first process of a microVM and nothing else: it must be PID 1");
        return ExitCode::FAILURE;
    }
    match std::panic::catch_unwind(boot_and_serve) {
        Ok(Err(error)) => say(&format!("guest-init stops: {}", chain(&error))),
        Err(_) => say("guest-init stops: it has a bug (see above)"),
    }
    // A restart rather than a power-off: without a driver for the latter the
    // kernel would only halt, and nobody would notice.
    if let Err(errno) = reboot(RebootCommand::Restart) {
        say(&format!("guest-init cannot restart the machine: {errno}"));
    }
    ExitCode::FAILURE
}

fn boot_and_serve() -> Result<Infallible, InitError> {
    let container = mounts::build_root()?;
    loopback::bring_up().map_err(InitError::Loopback)?;
    privileges::confine_children()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, API_PORT)).map_err(InitError::Listen)?;
    sandbox::seal()?;
    let machine = Box::new(GuestKernel::open().map_err(InitError::Kernel)?);
    let orphans = Some(Orphans::adopt().map_err(InitError::Kernel)?);
    let channel = Channel::new(connect().map_err(InitError::Connect)?);
    let layout = Layout::lambda(container);
    let mut guest = Guest::new(Parts {
        channel,
        listener,
        layout,
        machine,
        orphans,
    })?;
    Ok(guest.run()?)
}

/// The device may come up a moment after its driver.
fn connect() -> io::Result<OwnedFd> {
    let mut attempt = 1;
    loop {
        match sys::vsock::connect_to_host(CHANNEL_PORT) {
            Err(_) if attempt < CONNECT_ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(CONNECT_INTERVAL);
            }
            outcome => return outcome,
        }
    }
}

/// An error and its sources, on one line.
fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        // Writing to a String cannot fail.
        let _ = write!(line, ": {source}");
        next = source.source();
    }
    line
}

/// A line on the console; there is nobody to tell if that fails.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
