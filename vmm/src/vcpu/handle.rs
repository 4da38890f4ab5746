//! The supervisor's handle of a vCPU: lets it run, stops it, and reads and sets the state
//! of one that stands still.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::barrier::Barrier;
use super::entrance::Entrance;
use super::run::{Board, Broken, Stop};
use super::thread::{Order, Report, Worker};
use crate::arch::x86_64::boot::EntryPoint;
use crate::arch::x86_64::clock::{self, HostInstant, VcpuTimeV1};
use crate::arch::x86_64::cpuid::{self, CpuidEntryV1};
use crate::arch::x86_64::processor::{ProcessorError, ProcessorV1, Shape};
use crate::arch::x86_64::registers::SregsV1;
use crate::arch::x86_64::{msrs, run_page};
use crate::jail::{Jailed, SeccompError};
use crate::reset::inventory::vcpu::{Reading, Setting};
use crate::reset::inventory::{self, Parts};
use crate::step::{StepError, kernel};
use crate::sys::kick::{KickSwitch, Kickable};
use crate::sys::kvm::second_handle;

/// How long a vCPU may take to stop, or for one order.
const PATIENCE: Duration = Duration::from_secs(10);

/// A vCPU could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// A part of the state could not be read or set.
    #[error(transparent)]
    State(#[from] ProcessorError),
    /// A step with KVM or the thread failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The thread cannot give up what it does not need.
    #[error("the vCPU's thread cannot be confined")]
    Jail(#[from] SeccompError),
    /// The thread did not answer.
    #[error("the vCPU did not answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// The thread is gone.
    #[error("the vCPU's thread is gone")]
    Gone,
    /// The thread answered something else than it was asked for.
    #[error("the vCPU answered something that it was not asked for")]
    Unexpected,
    /// The guest stopped by itself.
    #[error("the guest stopped by itself: {0:?}")]
    GuestStopped(Stop),
}

impl VcpuError {
    /// Why the guest stopped by itself, when that is what happened.
    #[must_use]
    pub fn guest_stopped(&self) -> Option<&Stop> {
        match self {
            Self::GuestStopped(stop) => Some(stop),
            _ => None,
        }
    }
}

/// The supervisor's handle of a vCPU.
///
/// Its state is read and set from the supervisor's thread: handing that to the vCPU's
/// thread and waiting for it would cost two switches each time, as much as half of the
/// state. KVM lets nobody in while the guest runs, so whoever asks too early waits.
#[derive(Debug)]
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
    shape: Shape,
    orders: Sender<Order>,
    reports: Receiver<Report>,
    kick: KickSwitch,
    thread: Kickable,
}

impl Vcpu {
    /// Starts the thread of vCPU `id`. It writes to `stopped` when a guest that
    /// it ran has stopped and nobody had asked for it.
    ///
    /// # Errors
    /// When its run page cannot be mapped or the thread cannot be started.
    pub fn spawn(
        vm: &VmFd,
        id: u8,
        fd: VcpuFd,
        shape: Shape,
        stopped: EventFd,
        jailed: Jailed,
    ) -> Result<Self, VcpuError> {
        let kick = KickSwitch::new(&fd).map_err(kernel("share the vCPU's run page"))?;
        let own = second_handle(vm, &fd).map_err(kernel("duplicate the vCPU's descriptor"))?;
        let (orders, inbox) = channel();
        let (outbox, reports) = channel();
        let (name, named) = channel();
        let worker = Worker {
            fd,
            stay: None,
            outbox,
            stopped,
        };
        let serve = move || {
            // Whoever started the thread waits for this.
            let _ = name.send(Kickable::this_thread());
            match jailed.confine_vcpu_thread() {
                Ok(()) => worker.serve(&inbox),
                // The answer to the first order; nobody hears it if there is none.
                Err(error) => drop(worker.outbox.send(Report::Failed(error.into()))),
            }
        };
        std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(serve)
            .map_err(kernel("start a thread"))?;
        let thread = named.recv_timeout(PATIENCE).map_err(|_| VcpuError::Gone)?;
        Ok(Self {
            id,
            fd: own,
            shape,
            orders,
            reports,
            kick,
            thread,
        })
    }

    /// Shows the guest this CPUID table; only before it runs for the first time.
    ///
    /// # Errors
    /// What KVM reports.
    pub fn show_cpuid(&self, table: &[CpuidEntryV1]) -> Result<(), VcpuError> {
        Ok(cpuid::show(&self.fd, table, self.id).map_err(kernel("set the CPUID"))?)
    }

    /// Sets a vCPU that never ran to a kernel's entry point.
    ///
    /// # Errors
    /// What KVM reports.
    pub fn enter(&self, entry: EntryPoint) -> Result<(), VcpuError> {
        let reset = self
            .fd
            .get_sregs()
            .map_err(kernel("read the system registers"))?;
        let sregs = entry.system_registers(&SregsV1::from(&reset));
        self.fd
            .set_sregs(&(&sregs).into())
            .map_err(kernel("set the system registers"))?;
        let regs = entry.registers();
        Ok(self
            .fd
            .set_regs(&(&regs).into())
            .map_err(kernel("set the registers"))?)
    }

    /// Has a stopped vCPU go on from this time, as if the instant had been its own.
    ///
    /// # Errors
    /// What KVM reports.
    pub fn set_time(&self, time: &VcpuTimeV1, at: HostInstant) -> Result<(), VcpuError> {
        Ok(clock::start_vcpu(&self.fd, time, at).map_err(kernel("set the guest's time"))?)
    }

    /// The state of a stopped vCPU, with these MSRs and the time `at` an instant.
    ///
    /// # Errors
    /// Names the part that KVM does not tell.
    pub fn save(&mut self, msrs: &[u32], at: HostInstant) -> Result<ProcessorV1, VcpuError> {
        run_page::bring_in(&mut self.fd).map_err(kernel("set the registers that wait"))?;
        Ok(inventory::vcpu::capture(&Reading {
            vcpu: &self.fd,
            shape: &self.shape,
            msrs,
            at,
        })?)
    }

    /// As [`Self::save`], with those of the MSRs that a snapshot can hold.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn probe(&mut self, msrs: &[u32], at: HostInstant) -> Result<ProcessorV1, VcpuError> {
        let msrs = msrs::settable(&self.fd, msrs);
        self.save(&msrs, at)
    }

    /// Sets these parts of a stopped vCPU's state. `alone` says whether it is its
    /// machine's only one, `at_entrance` whether KVM may take some when it is entered.
    ///
    /// # Errors
    /// Names the part that KVM does not take.
    pub fn load(
        &mut self,
        state: &ProcessorV1,
        parts: Parts,
        alone: bool,
        at_entrance: bool,
    ) -> Result<(), VcpuError> {
        let at_entrance = at_entrance
            && self.shape.has_run_page
            && run_page::has_apic_base(&mut self.fd, state.sregs.apic_base);
        Ok(inventory::vcpu::restore(&mut Setting {
            vcpu: &mut self.fd,
            shape: &self.shape,
            state,
            parts,
            alone,
            at_entrance,
        })?)
    }

    /// Lets the guest run on this board; `entrance` is told when it is entered.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn run(&self, board: Board, entrance: Option<Arc<Entrance>>) -> Result<(), VcpuError> {
        self.kick.set(false);
        self.order(Order::Run(board, entrance))
    }

    /// Has the thread pass a branch-predictor barrier before its next run;
    /// [`Self::done`] waits for it.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn forget_predictions(&self, barrier: Arc<Barrier>) -> Result<(), VcpuError> {
        self.order(Order::ForgetPredictions(barrier))
    }

    fn order(&self, order: Order) -> Result<(), VcpuError> {
        self.orders.send(order).map_err(|_| VcpuError::Gone)
    }

    /// Waits for the report to an order.
    fn report(&self) -> Result<Report, VcpuError> {
        match self.reports.recv_timeout(PATIENCE) {
            Ok(Report::Failed(error)) => Err(error),
            Ok(report) => Ok(report),
            Err(RecvTimeoutError::Timeout) => Err(VcpuError::Silent),
            Err(RecvTimeoutError::Disconnected) => Err(VcpuError::Gone),
        }
    }

    /// Waits until the thread has done an order that returns nothing.
    ///
    /// # Errors
    /// What the thread reports; [`VcpuError::Silent`] after a bounded time.
    pub fn done(&self) -> Result<(), VcpuError> {
        match self.report()? {
            Report::Done => Ok(()),
            _ => Err(VcpuError::Unexpected),
        }
    }

    /// Makes the guest stop; [`Self::paused`] waits for it.
    ///
    /// # Errors
    /// When the thread cannot be interrupted.
    pub fn kick(&self) -> Result<(), VcpuError> {
        self.kick.set(true);
        Ok(self.thread.kick().map_err(kernel("interrupt the vCPU"))?)
    }

    /// Waits until a kicked guest has stopped.
    ///
    /// # Errors
    /// As [`Self::done`], or when it stopped for a reason of its own.
    pub fn paused(&self) -> Result<(), VcpuError> {
        match self.report()? {
            Report::Stopped(Stop::Paused) => Ok(()),
            Report::Stopped(stop) => Err(VcpuError::GuestStopped(stop)),
            _ => Err(VcpuError::Unexpected),
        }
    }

    /// Why the guest was not entered, or is over already, if that is so.
    #[must_use]
    pub fn refused(&self) -> Option<VcpuError> {
        match self.reports.try_recv().ok()? {
            Report::Failed(error) => Some(error),
            Report::Stopped(stop) => Some(VcpuError::GuestStopped(stop)),
            Report::Done => Some(VcpuError::Unexpected),
        }
    }

    /// Why the guest stopped, if it did.
    #[must_use]
    pub fn stopped(&self) -> Option<Stop> {
        match self.reports.try_recv().ok()? {
            Report::Stopped(stop) => Some(stop),
            Report::Failed(error) => Some(Stop::Broken(Broken::Kernel {
                step: "running the vCPU",
                reason: error.to_string(),
            })),
            Report::Done => None,
        }
    }
}
