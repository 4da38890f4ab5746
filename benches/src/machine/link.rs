//! The host's end of a machine's network.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::thread::UnshareFlags;
use snapback_vmm::sys::{jail, tap};

use super::{MachineError, prepare};

const NAME: &str = "tap0";
const HOST: &str = "10.0.0.1/24";

/// A tap in a network namespace of the benchmark's own.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Makes it. The calling thread is in the new namespace from then on.
    ///
    /// # Errors
    /// When the kernel refuses, or there is no `ip`.
    pub fn make() -> Result<Self, MachineError> {
        jail::unshare(UnshareFlags::NEWNET).map_err(prepare("make a network namespace"))?;
        let device = File::options().read(true).write(true).open("/dev/net/tun");
        let device = device.map_err(prepare("open /dev/net/tun"))?;
        tap::attach(device.as_fd(), NAME).map_err(prepare("make a tap"))?;
        for words in [
            format!("addr add {HOST} dev {NAME}"),
            format!("link set {NAME} up"),
        ] {
            let done = Command::new("ip")
                .args(words.split(' '))
                .stdin(Stdio::null())
                .status()
                .map_err(prepare("run ip"))?;
            if !done.success() {
                let failed = std::io::Error::other(format!("it ended with {done}"));
                return Err(prepare(format!("run ip {words}"))(failed));
            }
        }
        Ok(Self(device.into()))
    }

    pub(super) fn tap(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
