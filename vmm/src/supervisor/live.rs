//! A machine with a guest: its devices are on the bus, its queues are connected,
//! and its vCPUs can be let go and stopped.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::thread::sched_getaffinity;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::blank::Blank;
use super::doorbells::Doorbell;
use crate::arch::x86_64::acpi::MmioDevice;
use crate::arch::x86_64::cpuid::CpuidEntryV1;
use crate::bus::layout::{MMIO_WINDOW, MmioSlot};
use crate::bus::{Bus, TooManyDevices};
use crate::control::{DeviceFiles, DiskFiles};
use crate::devices::serial::Serial;
use crate::devices::vmgenid::{self, RenewError};
use crate::memory::{Ahead, GuestMemory, MemoryError, Written};
use crate::poll::HostPoll;
use crate::reset::inventory::{Parts, start};
use crate::step::{StepError, kernel};
use crate::supervisor::Saved;
use crate::sys::spare::Spare;
use crate::sys::uffd::Uffd;
use crate::vcpu::{Barrier, Board, Entrance, Vcpu, VcpuError};
use crate::virtio::block::{Block, OpenError};
use crate::virtio::net::{self, Net};
use crate::virtio::vsock::Vsock;

/// A guest could not be connected to its devices.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// Too many disks.
    #[error(transparent)]
    Devices(#[from] TooManyDevices),
    /// The doorbells were connected for other devices.
    #[error("the machine was prepared for {disks} disks and {} net device", if *.net { "a" } else { "no" })]
    Prepared {
        /// Disks that it was prepared for.
        disks: u8,
        /// Whether it was prepared for a net device.
        net: bool,
    },
    /// A disk image cannot be used.
    #[error("disk {index} cannot be used")]
    Disk {
        /// Its number, from 0.
        index: usize,
        /// Why not.
        #[source]
        source: OpenError,
    },
    /// The tap cannot be used.
    #[error("the net device cannot be used")]
    Net(#[source] net::OpenError),
    /// A step with the kernel failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The guest cannot be told from another of its snapshot.
    #[error(transparent)]
    Generation(#[from] RenewError),
    /// A vCPU did not join.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// Pages cannot be copied ahead.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A machine with a guest.
#[derive(Debug)]
pub struct Live {
    /// What vCPUs and supervisor share.
    pub board: Board,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// The vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// Written to when a vCPU left its guest by itself.
    pub stopped: EventFd,
    /// Where its virtio devices lie.
    pub slots: Vec<MmioSlot>,
    /// One for each queue of each device.
    pub doorbells: Vec<Doorbell>,
    /// The MSRs that KVM can save.
    pub msrs: Arc<[u32]>,
    /// The CPUID table that the guest sees.
    pub cpuid: Arc<[CpuidEntryV1]>,
    /// Waits for the host's ends of the devices.
    pub poll: HostPoll,
    /// A huge page that was prepared and is not needed; see [`Live::give_spare_back`].
    spare: Option<Spare>,
    /// See [`Blank::uffd`].
    _uffd: Arc<Uffd>,
}

impl Live {
    /// Puts the devices of a guest into a blank machine whose memory is backed. Pages that
    /// are `written` are to be its own ahead.
    ///
    /// # Errors
    /// When a disk cannot be used or the kernel refuses.
    pub fn assemble(
        blank: Blank,
        serial: OwnedFd,
        files: DeviceFiles,
        cpuid: Arc<[CpuidEntryV1]>,
        written: Option<Written>,
    ) -> Result<Self, AssembleError> {
        let serial = Serial::new(serial).map_err(kernel("prepare the serial output"))?;
        let disks = (0..).zip(files.disks).map(|(index, files)| {
            open_disk(index, files).map_err(|source| AssembleError::Disk { index, source })
        });
        let vsock = Vsock::new(blank.poll.device(Bus::VSOCK));
        let net = files.net.map(|files| {
            Net::open(files.tap, files.mac, &blank.poll.device(Bus::NET))
                .map_err(AssembleError::Net)
        });
        let bus = Bus::new(
            serial,
            vsock,
            net.transpose()?,
            disks.collect::<Result<_, _>>()?,
        )?;
        if bus.slots()? != blank.slots {
            return Err(AssembleError::Prepared {
                disks: blank.shape.disks,
                net: blank.shape.net,
            });
        }
        let work = EventFd::new(EFD_NONBLOCK).map_err(kernel("create an eventfd"))?;
        let (memory, uffd) = (Arc::new(blank.memory), Arc::new(blank.uffd));
        let ahead = Ahead::new(Arc::clone(&memory), Arc::clone(&uffd), written)?;
        let board = Board {
            vm: blank.vm,
            bus: Arc::new(Mutex::new(bus)),
            ram: memory.ram().clone(),
            work: Arc::new(work),
            ahead: Arc::new(ahead),
        };
        if *cpuid != *blank.cpuid {
            let mut vcpus = blank.vcpus.iter();
            vcpus.try_for_each(|vcpu| vcpu.show_cpuid(&cpuid))?;
        }
        Ok(Self {
            board,
            memory,
            vcpus: blank.vcpus,
            stopped: blank.stopped,
            doorbells: blank.doorbells,
            slots: blank.slots,
            msrs: blank.msrs,
            cpuid,
            poll: blank.poll,
            spare: blank.spare,
            _uffd: uffd,
        })
    }

    /// The virtio devices as the ACPI tables name them.
    #[must_use]
    pub fn mmio_devices(&self) -> Vec<MmioDevice> {
        let low = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let name = |base, gsi| MmioDevice {
            address: low(base),
            length: low(MMIO_WINDOW),
            gsi,
        };
        let slots = self.slots.iter();
        slots.map(|slot| name(slot.base, slot.gsi)).collect()
    }

    /// Starts every vCPU from where it stands, with a first generation id.
    ///
    /// # Errors
    /// When there is no id or a vCPU's thread is gone.
    pub fn start(&self) -> Result<(), AssembleError> {
        // A guest that boots reads the id when it comes to it.
        let _ = vmgenid::renew(&self.board.ram)?;
        for vcpu in &self.vcpus {
            vcpu.run(self.board.clone(), None)?;
        }
        Ok(())
    }

    /// Lets a guest that stands at its snapshot run, with what the inventory has for
    /// the start – the snapshot's time, and a new generation id – and with what its
    /// devices' new host ends have for it. The interrupts of both are the first thing it
    /// sees. What is returned says when it is entered.
    ///
    /// # Errors
    /// When there is no new id, KVM does not take the time or a vCPU's thread is
    /// gone.
    pub fn enter(&self, saved: &Saved, parts: Parts) -> Result<Arc<Entrance>, AssembleError> {
        // Where that cannot be found out, waking the supervisor costs a little more.
        let parallel = sched_getaffinity(None).map_or(true, |cpus| cpus.count() > 1);
        if !parallel {
            self.board.ahead.advance(u32::MAX);
        }
        start::give(self, saved, parts)?;
        let told = self.board.bus().host_changed(&self.board.ram);
        if told.more_work {
            let woken = self.board.work.write(1);
            woken.map_err(kernel("leave work to the supervisor"))?;
        }
        let pulsed = self.board.pulse(told);
        pulsed.map_err(kernel("raise the devices' first interrupts"))?;
        let entrance = Arc::new(Entrance::new(Arc::clone(&self.board.work), parallel));
        for vcpu in &self.vcpus {
            vcpu.run(self.board.clone(), Some(Arc::clone(&entrance)))?;
        }
        Ok(entrance)
    }

    /// Gives a huge page that was prepared in vain back to the host. That takes time, so a
    /// guest that somebody waits for is entered first.
    pub fn give_spare_back(&mut self) {
        self.spare = None;
    }

    /// Has every vCPU pass a branch-predictor barrier before its next run.
    ///
    /// # Errors
    /// When KVM refuses or a vCPU's thread is gone.
    pub fn forget_predictions(&self, barrier: &Arc<Barrier>) -> Result<(), VcpuError> {
        for vcpu in &self.vcpus {
            vcpu.forget_predictions(Arc::clone(barrier))?;
        }
        self.vcpus.iter().try_for_each(Vcpu::done)
    }

    /// Makes every vCPU leave a guest that is over. Nobody waits for them: the end
    /// of the process follows.
    pub fn abandon(&self) {
        for vcpu in &self.vcpus {
            // One that cannot be interrupted ends with the process as well.
            let _ = vcpu.kick();
        }
    }

    /// Stops every vCPU.
    ///
    /// # Errors
    /// When one does not stop in time, or stopped for a reason of its own.
    pub fn pause(&self) -> Result<(), VcpuError> {
        self.vcpus.iter().try_for_each(Vcpu::kick)?;
        self.vcpus.iter().try_for_each(Vcpu::paused)
    }
}

fn open_disk(index: usize, files: DiskFiles) -> Result<Block, OpenError> {
    match files {
        DiskFiles::ReadOnly { image } => Block::read_only(index, image),
        DiskFiles::Scratch {
            base,
            overlay,
            overlay_limit,
        } => Block::scratch(index, base, overlay, overlay_limit),
    }
}
