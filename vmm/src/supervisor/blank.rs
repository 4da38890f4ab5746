//! A machine without a guest: everything that takes time and does not depend on
//! a snapshot.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};
use snapback_proto::CONTROL_VERSION;
use snapback_proto::control::Machine;
use snapback_proto::cpu::CpuTemplate;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::doorbells::{self, Doorbell};
use crate::arch::x86_64::cpuid::{self, CpuidEntryV1};
use crate::arch::x86_64::processor::Shape;
use crate::arch::x86_64::template::{self, Unfit};
use crate::arch::x86_64::{TSS_ADDRESS, msrs};
use crate::bus::layout::MmioSlot;
use crate::bus::{self, TooManyDevices};
use crate::jail::Jailed;
use crate::memory::{GuestMemory, MemoryError, Pagemap};
use crate::poll::HostPoll;
use crate::step::{StepError, kernel};
use crate::sys::dirty_log;
use crate::sys::kick;
use crate::sys::spare::Spare;
use crate::sys::uffd::Uffd;
use crate::vcpu::{Vcpu, VcpuError};

/// Most vCPUs of one machine.
pub const MAX_VCPUS: u8 = 8;

/// The host's devices that a VMM process inherits, open.
#[derive(Debug)]
pub struct HostDevices {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// `/dev/userfaultfd`.
    pub userfaultfd: OwnedFd,
    /// Which pages are this process's own.
    pub pagemap: Arc<Pagemap>,
    /// A guest only runs in a process that gave up everything else.
    pub jailed: Jailed,
}

/// A machine could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The agent is of another build.
    #[error("the agent speaks version {found} of the control protocol, this VMM {CONTROL_VERSION}")]
    Version {
        /// What the agent speaks.
        found: u16,
    },
    /// The number of vCPUs is out of range.
    #[error("{vcpus} vCPUs cannot be built: it must be 1 to {MAX_VCPUS}")]
    Vcpus {
        /// What was asked for.
        vcpus: u8,
    },
    /// Too many devices.
    #[error(transparent)]
    Devices(#[from] TooManyDevices),
    /// This host has no such processor.
    #[error("template {template} is not possible here", template = .0)]
    Template(CpuTemplate, #[source] Unfit),
    /// A step with the kernel failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Guest memory could not be reserved.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A vCPU could not be started.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

/// A machine without a guest.
#[derive(Debug)]
pub struct Blank {
    /// Its shape.
    pub shape: Machine,
    /// The VM.
    pub vm: Arc<VmFd>,
    /// Its memory, not backed yet.
    pub memory: GuestMemory,
    /// A huge page for the place that its guest will write most, made while nobody waits.
    /// `None` where the kernel has none now: the guest takes its faults then.
    pub spare: Option<Spare>,
    /// Where its page faults come from. Kept open for as long as the machine
    /// lives: with the last descriptor, missing pages would turn into zeroes.
    pub uffd: Uffd,
    /// Waits for the host's ends of its devices.
    pub poll: HostPoll,
    /// Where its virtio devices will lie.
    pub slots: Vec<MmioSlot>,
    /// The doorbells of their queues.
    pub doorbells: Vec<Doorbell>,
    /// Its vCPUs, idle; their guest sees [`Blank::cpuid`].
    pub vcpus: Vec<Vcpu>,
    /// Written to when a vCPU left its guest by itself.
    pub stopped: EventFd,
    /// The CPUID table of its template on this host.
    pub cpuid: Vec<CpuidEntryV1>,
    /// Everything that this host could show.
    pub host_cpuid: Vec<CpuidEntryV1>,
    /// The MSRs that KVM can save and its guest can reach.
    pub msrs: Arc<[u32]>,
}

impl Blank {
    /// Builds a machine of `shape`.
    ///
    /// # Errors
    /// When the shape is impossible or KVM refuses.
    pub fn prepare(host: &HostDevices, shape: Machine) -> Result<Self, PrepareError> {
        if shape.control_version != CONTROL_VERSION {
            return Err(PrepareError::Version {
                found: shape.control_version,
            });
        }
        if !(1..=MAX_VCPUS).contains(&shape.vcpus) {
            return Err(PrepareError::Vcpus { vcpus: shape.vcpus });
        }
        let device = std::os::fd::AsFd::as_fd(&host.userfaultfd);
        let uffd = Uffd::from_device(device).map_err(kernel("create a userfaultfd"))?;
        let vm = Arc::new(host.kvm.create_vm().map_err(kernel("create a VM"))?);
        dirty_log::enable(&vm).map_err(kernel("have pages protected by hand"))?;
        let host_cpuid =
            cpuid::for_host(&host.kvm, shape.vcpus).map_err(kernel("read the supported CPUID"))?;
        let cpuid = template::of_host(shape.template, &host_cpuid, shape.vcpus)
            .map_err(|source| PrepareError::Template(shape.template, source))?;
        let msrs = msrs::listed(&host.kvm, shape.template).map_err(kernel("list the MSRs"))?;
        template::confine(&vm, shape.template, &msrs).map_err(kernel("filter the guest's MSRs"))?;
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(kernel("set the TSS address"))?;
        vm.create_irq_chip()
            .map_err(kernel("create the interrupt controllers"))?;
        let slots = bus::slots(shape.disks.into(), shape.net)?;
        let doorbells = doorbells::connect(&vm, &slots)?;
        let memory = GuestMemory::reserve(&vm, shape.memory_mib, Arc::clone(&host.pagemap))?;
        let stopped = EventFd::new(EFD_NONBLOCK).map_err(kernel("create an eventfd"))?;
        let processor = Shape::of(&vm, shape.template, &cpuid);
        let vcpus = spawn_vcpus(&vm, shape.vcpus, &processor, &cpuid, &stopped, host.jailed)?;
        Ok(Self {
            shape,
            uffd,
            poll: HostPoll::new().map_err(kernel("create an epoll instance"))?,
            memory,
            spare: Spare::new().ok(),
            slots,
            doorbells,
            vcpus,
            stopped,
            cpuid,
            host_cpuid,
            msrs: msrs.into(),
            vm,
        })
    }
}

fn spawn_vcpus(
    vm: &VmFd,
    count: u8,
    shape: &Shape,
    cpuid: &[CpuidEntryV1],
    stopped: &EventFd,
    jailed: Jailed,
) -> Result<Vec<Vcpu>, PrepareError> {
    kick::install_handler().map_err(kernel("install a signal handler"))?;
    (0..count)
        .map(|id| {
            let fd = vm
                .create_vcpu(u64::from(id))
                .map_err(kernel("create a vCPU"))?;
            cpuid::enforce(&fd).map_err(kernel("confine a vCPU to its CPUID"))?;
            cpuid::show(&fd, cpuid, id).map_err(kernel("set the CPUID"))?;
            let stopped = stopped
                .try_clone()
                .map_err(kernel("duplicate an eventfd"))?;
            Ok(Vcpu::spawn(vm, id, fd, shape.clone(), stopped, jailed)?)
        })
        .collect()
}
