//! Devices that not every test's machine has: scratch disks, a network.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use serde_json::Value;
use snapback_proto::control::{Devices, Disk, Net};
use snapback_vmm::sys::memfd;

use super::{code_answer, send_code};

/// What stands behind a scratch disk.
pub struct Scratch {
    pub base: File,
    pub overlay: File,
    pub limit: u64,
}

impl Scratch {
    /// With an overlay in memory.
    pub fn over(base: &File, limit: u64) -> Self {
        let len = base.metadata().unwrap().len();
        Self {
            base: base.try_clone().unwrap(),
            overlay: memfd::create("overlay", len).unwrap().into(),
            limit,
        }
    }
}

/// The guest's address on its link.
pub const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x2a];

/// The devices of a machine beside its two read-only disks.
#[derive(Default)]
pub struct Extra<'a> {
    /// `vdc` and further.
    pub scratch: &'a [Scratch],
    /// The host's end of `eth0`.
    pub tap: Option<&'a OwnedFd>,
    /// The VMM's end of a vsock hub, for a machine that boots.
    pub hub: Option<&'a OwnedFd>,
}

impl<'a> Extra<'a> {
    /// All of the machine's devices.
    pub fn devices(&self) -> Devices {
        let mut devices = Devices::read_only_disks(2);
        let scratch = self.scratch.iter().map(|disk| Disk::Scratch {
            overlay_limit: disk.limit,
        });
        devices.disks.extend(scratch);
        devices.net = self.tap.map(|_| Net { mac: MAC });
        devices
    }

    /// Their descriptors, those of the two disks first.
    pub(super) fn descriptors(&self, disks: &'a [File; 2]) -> Vec<&'a dyn AsFd> {
        let mut fds: Vec<&dyn AsFd> = vec![&disks[0], &disks[1]];
        for disk in self.scratch {
            fds.extend([&disk.base as &dyn AsFd, &disk.overlay]);
        }
        fds.extend(self.tap.map(|tap| -> &dyn AsFd { tap }));
        fds.extend(self.hub.map(|hub| -> &dyn AsFd { hub }));
        fds
    }
}

/// Has a root guest execute lines of Python; the value of `result`.
pub fn result_of(channel: &UnixStream, code: &str) -> Value {
    begin(channel, code);
    finish(channel)
}

/// As [`result_of`], without waiting for the end of it.
pub fn begin(channel: &UnixStream, code: &str) {
    send_code(
        channel,
        &format!("result = None\n{code}\nanswer = json.dumps(result)"),
    );
}

/// The `result` of what [`begin`] began.
pub fn finish(channel: &UnixStream) -> Value {
    let answer = code_answer(channel);
    serde_json::from_str(&answer).unwrap_or_else(|_| panic!("in the guest: {answer}"))
}
