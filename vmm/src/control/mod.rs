//! The control socket: packets with descriptors become typed requests.
//!
//! The agent is trusted, but a mixed-up packet must not reach the machine: each
//! command's descriptors are counted and named here, and nowhere else.

mod hangup;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use snapback_proto::control::{
    Command, ControlError, Devices, Disk, Event, Failure, Machine, Net, PageRun, Reply, Run,
    VmmMessage, receive, send,
};
use snapback_proto::words::chain;

use crate::memory::Written;

pub use hangup::exit_on_hangup;

/// What the agent asks for, with its descriptors by name.
#[derive(Debug)]
pub enum Request {
    /// See [`Command::Prepare`].
    Prepare(Machine),
    /// See [`Command::Boot`].
    Boot(BootFiles),
    /// See [`Command::Snapshot`].
    Snapshot(SnapshotFiles),
    /// See [`Command::Restore`].
    Restore(RestoreFiles),
    /// See [`Command::Run`].
    Run(RunFiles),
    /// See [`Command::Reset`].
    Reset {
        /// Most pages to copy.
        page_budget: u64,
    },
    /// See [`Command::Verify`].
    Verify,
    /// See [`Command::Continue`].
    Continue(ContinueFiles),
}

/// How a guest is let go.
#[derive(Debug)]
pub struct RunFiles {
    /// Host ends of what the guest connects to.
    pub ends: HostEnds,
    /// Whether the predictors are to be forgotten first.
    pub barrier: bool,
}

/// The host's side of a lease.
#[derive(Debug)]
pub struct HostEnds {
    /// Host end of the invocation channel.
    pub channel: OwnedFd,
    /// The vsock hub, when the guest may have other connections.
    pub hub: Option<OwnedFd>,
}

/// What a machine boots from.
#[derive(Debug)]
pub struct BootFiles {
    /// The kernel's command line.
    pub command_line: String,
    /// memfd of the machine's memory size.
    pub memory: OwnedFd,
    /// The kernel, an ELF file.
    pub kernel: File,
    /// The initramfs, a cpio archive.
    pub initramfs: File,
    /// Where serial output goes.
    pub serial: OwnedFd,
    /// Host ends of what the guest connects to.
    pub ends: HostEnds,
    /// What stands behind its devices.
    pub devices: DeviceFiles,
}

/// Where a snapshot goes.
#[derive(Debug)]
pub struct SnapshotFiles {
    /// The state.
    pub state: File,
    /// What each scratch disk holds, in order. How many there are, the machine knows.
    pub disks: Vec<File>,
}

/// What a machine is restored from.
#[derive(Debug)]
pub struct RestoreFiles {
    /// The snapshot's memory.
    pub memory: OwnedFd,
    /// The snapshot's state file.
    pub state: File,
    /// Where serial output goes.
    pub serial: OwnedFd,
    /// What stands behind its devices.
    pub devices: DeviceFiles,
    /// Whether the memory may lack pages of the snapshot.
    pub lazy: bool,
    /// Pages that are to be the machine's own ahead.
    pub written: Option<Written>,
    /// The place of a huge page that is to be the machine's own as a whole.
    pub whole: Option<u32>,
    /// How the guest is let go, if that is to follow at once.
    pub run: Option<RunFiles>,
}

/// What a machine goes on from.
#[derive(Debug)]
pub struct ContinueFiles {
    /// A copy of the snapshot's memory, which becomes the machine's own.
    pub memory: OwnedFd,
    /// The snapshot's state file.
    pub state: File,
    /// Where serial output goes.
    pub serial: OwnedFd,
    /// Host end of the guest's channel.
    pub ends: HostEnds,
    /// What stands behind its devices.
    pub devices: DeviceFiles,
}

/// [`Devices`] with their descriptors.
#[derive(Debug)]
pub struct DeviceFiles {
    /// Disks, `vda` first.
    pub disks: Vec<DiskFiles>,
    /// The net device, if there is one.
    pub net: Option<NetFiles>,
}

/// A [`Net`] with its descriptor.
#[derive(Debug)]
pub struct NetFiles {
    /// The guest's address.
    pub mac: [u8; 6],
    /// The tap.
    pub tap: OwnedFd,
}

/// A [`Disk`] with its descriptors.
#[derive(Debug)]
pub enum DiskFiles {
    /// See [`Disk::ReadOnly`].
    ReadOnly {
        /// What the disk shows.
        image: File,
    },
    /// See [`Disk::Scratch`].
    Scratch {
        /// What lies under the writes.
        base: File,
        /// Where they go.
        overlay: File,
        /// Most bytes that the overlay may take up.
        overlay_limit: u64,
    },
}

/// A request could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The socket failed or is closed, or the packet is no command.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The command came with too few or too many descriptors.
    #[error("the {command} command came with {found} descriptors instead of {expected}")]
    Descriptors {
        /// Which command.
        command: &'static str,
        /// How many it came with.
        found: usize,
        /// How many it needs.
        expected: usize,
    },
}

/// The VMM's end of the control socket.
#[derive(Debug)]
pub struct ControlSocket(OwnedFd);

impl ControlSocket {
    /// Takes over the inherited socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// For polling.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Waits for the next request.
    ///
    /// # Errors
    /// When the socket is closed or the packet is not a proper command.
    pub fn receive(&self) -> Result<Request, RequestError> {
        let (command, fds) = receive::<Command>(&self.0)?;
        Request::new(command, fds)
    }

    /// Answers a request.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn reply(&self, reply: Reply, fds: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        send(&self.0, &VmmMessage::Reply(reply), fds)
    }

    /// Tells that something happened.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn event(&self, event: Event) -> Result<(), ControlError> {
        send(&self.0, &VmmMessage::Event(event), &[])
    }
}

impl Request {
    fn new(command: Command, mut fds: Vec<OwnedFd>) -> Result<Self, RequestError> {
        let name = command.name();
        let found = fds.len();
        let wrong = |expected| RequestError::Descriptors {
            command: name,
            found,
            expected,
        };
        match command {
            Command::Prepare(machine) => {
                let [] = exactly(fds).ok_or(wrong(0))?;
                Ok(Self::Prepare(machine))
            }
            Command::Boot {
                command_line,
                devices,
                hub,
            } => {
                let hub_end = take_hub(&mut fds, hub);
                let (head, devices) =
                    split(fds, &devices).map_err(|n| wrong(n + usize::from(hub)))?;
                let [memory, kernel, initramfs, serial, channel] = head;
                let (kernel, initramfs) = (kernel.into(), initramfs.into());
                let files = BootFiles {
                    command_line,
                    memory,
                    kernel,
                    initramfs,
                    serial,
                    ends: HostEnds {
                        channel,
                        hub: hub_end,
                    },
                    devices,
                };
                Ok(Self::Boot(files))
            }
            Command::Snapshot => {
                let mut files = fds.into_iter().map(File::from);
                Ok(Self::Snapshot(SnapshotFiles {
                    state: files.next().ok_or(wrong(1))?,
                    disks: files.collect(),
                }))
            }
            Command::Restore {
                devices,
                lazy,
                written,
                whole,
                run,
            } => {
                let of_run = run.map_or(0, Run::descriptors);
                let of_pages = usize::from(!written.is_empty());
                let last = fds.split_off(fds.len().saturating_sub(of_run));
                let copies = take_copies(&mut fds, written);
                let (head, devices) =
                    split(fds, &devices).map_err(|n| wrong(n + of_pages + of_run))?;
                let [memory, state, serial] = head;
                let take = |run| RunFiles::take(run, last).map_err(wrong);
                Ok(Self::Restore(RestoreFiles {
                    memory,
                    state: state.into(),
                    serial,
                    devices,
                    lazy,
                    written: copies,
                    whole,
                    run: run.map(take).transpose()?,
                }))
            }
            Command::Run(run) => Ok(Self::Run(RunFiles::take(run, fds).map_err(wrong)?)),
            Command::Reset { page_budget } => {
                let [] = exactly(fds).ok_or(wrong(0))?;
                Ok(Self::Reset { page_budget })
            }
            Command::Verify => {
                let [] = exactly(fds).ok_or(wrong(0))?;
                Ok(Self::Verify)
            }
            Command::Continue { devices } => {
                let (head, devices) = split(fds, &devices).map_err(wrong)?;
                let [memory, state, serial, channel] = head;
                Ok(Self::Continue(ContinueFiles {
                    memory,
                    state: state.into(),
                    serial,
                    ends: HostEnds { channel, hub: None },
                    devices,
                }))
            }
        }
    }

    /// The command's name, for messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Prepare(_) => "prepare",
            Self::Boot(_) => "boot",
            Self::Snapshot(_) => "snapshot",
            Self::Restore(_) => "restore",
            Self::Run(_) => "run",
            Self::Reset { .. } => "reset",
            Self::Verify => "verify",
            Self::Continue(_) => "continue",
        }
    }
}

fn exactly<const N: usize>(fds: Vec<OwnedFd>) -> Option<[OwnedFd; N]> {
    fds.try_into().ok()
}

/// The hub comes last, if there is one.
fn take_hub(fds: &mut Vec<OwnedFd>, hub: bool) -> Option<OwnedFd> {
    if hub { fds.pop() } else { None }
}

/// The copies of pages come after memory, state and serial output, if there are any.
fn take_copies(fds: &mut Vec<OwnedFd>, runs: Vec<PageRun>) -> Option<Written> {
    const PLACE: usize = 3;
    if runs.is_empty() || fds.len() <= PLACE {
        return None;
    }
    let copies = fds.remove(PLACE);
    Some(Written { runs, copies })
}

/// `N` descriptors by position and then those of `devices`, or how many there
/// should be.
fn split<const N: usize>(
    mut fds: Vec<OwnedFd>,
    devices: &Devices,
) -> Result<([OwnedFd; N], DeviceFiles), usize> {
    let expected = N + devices.descriptors();
    if fds.len() != expected {
        return Err(expected);
    }
    let mut rest = fds.split_off(N).into_iter();
    let files = DeviceFiles::take(devices, &mut rest).ok_or(expected)?;
    Ok((exactly(fds).ok_or(expected)?, files))
}

impl RunFiles {
    /// Or how many descriptors there should be.
    fn take(run: Run, mut fds: Vec<OwnedFd>) -> Result<Self, usize> {
        let hub = take_hub(&mut fds, run.hub);
        let [channel] = exactly(fds).ok_or(run.descriptors())?;
        Ok(Self {
            ends: HostEnds { channel, hub },
            barrier: run.barrier,
        })
    }
}

impl DeviceFiles {
    fn take(devices: &Devices, fds: &mut impl Iterator<Item = OwnedFd>) -> Option<Self> {
        let mut disks = Vec::with_capacity(devices.disks.len());
        for disk in &devices.disks {
            disks.push(match disk {
                Disk::ReadOnly => DiskFiles::ReadOnly {
                    image: fds.next()?.into(),
                },
                Disk::Scratch { overlay_limit } => DiskFiles::Scratch {
                    base: fds.next()?.into(),
                    overlay: fds.next()?.into(),
                    overlay_limit: *overlay_limit,
                },
            });
        }
        let net = match devices.net {
            Some(Net { mac }) => Some(NetFiles {
                mac,
                tap: fds.next()?,
            }),
            None => None,
        };
        Some(Self { disks, net })
    }
}

/// A failure as the agent is told of it: the error and all its sources.
#[must_use]
pub fn failure(
    operation: &str,
    error: &dyn std::error::Error,
    section: Option<&'static str>,
) -> Failure {
    Failure {
        operation: operation.to_owned(),
        reason: chain(error),
        section: section.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors(count: usize) -> Vec<OwnedFd> {
        (0..count)
            .map(|_| tempfile::tempfile().unwrap().into())
            .collect()
    }

    #[test]
    fn each_command_takes_exactly_its_descriptors() {
        let boot = Command::Boot {
            command_line: String::new(),
            devices: Devices::read_only_disks(2),
            hub: false,
        };
        let with_hub = Command::Boot {
            command_line: String::new(),
            devices: Devices::read_only_disks(2),
            hub: true,
        };
        let run = |hub| Run {
            hub,
            barrier: false,
        };
        let one = [PageRun { first: 7, pages: 2 }];
        let restore = |written: &[PageRun], run| Command::Restore {
            devices: Devices {
                disks: vec![
                    Disk::Scratch {
                        overlay_limit: 4096,
                    },
                    Disk::ReadOnly,
                ],
                net: Some(Net { mac: [2; 6] }),
            },
            lazy: true,
            written: written.to_vec(),
            whole: Some(3),
            run,
        };
        let cases = [
            (boot, 7),
            (with_hub, 8),
            (restore(&[], None), 7),
            (restore(&[], Some(run(false))), 8),
            (restore(&[], Some(run(true))), 9),
            (restore(&one, None), 8),
            (restore(&one, Some(run(true))), 10),
            (Command::Run(run(false)), 1),
            (Command::Run(run(true)), 2),
            (Command::RESET, 0),
            (Command::Verify, 0),
        ];
        for count in 0..11 {
            // How many disks are written down, the machine knows.
            let snapshot = Request::new(Command::Snapshot, descriptors(count));
            assert_eq!(snapshot.is_ok(), count > 0);
        }
        for (command, expected) in cases {
            for count in 0..11 {
                let request = Request::new(command.clone(), descriptors(count));
                assert_eq!(
                    request.is_ok(),
                    count == expected,
                    "{command:?} with {count}"
                );
            }
        }
    }
}
