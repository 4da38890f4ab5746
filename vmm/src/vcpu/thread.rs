//! A vCPU's thread and the handle that the supervisor has of it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::EventFd;

use super::barrier::{Barrier, Stay};
use super::run::Broken;
use super::run::{Board, Stop, run};
use crate::arch::x86_64::boot::EntryPoint;
use crate::arch::x86_64::clock::{self, HostInstant, VcpuTimeV1};
use crate::arch::x86_64::cpuid::{self, CpuidEntryV1};
use crate::arch::x86_64::msrs;
use crate::arch::x86_64::processor::{ProcessorError, ProcessorV1, Shape};
use crate::arch::x86_64::registers::SregsV1;
use crate::jail::{Jailed, SeccompError};
use crate::reset::inventory::vcpu::{Reading, Setting};
use crate::reset::inventory::{self, Parts};
use crate::step::{StepError, kernel};
use crate::sys::kick::{KickSwitch, interrupt};

/// How long a stopped vCPU may take for one order.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a vCPU thread is told to do.
#[derive(Debug)]
pub enum Order {
    /// Show the guest this CPUID table; only before it runs for the first time.
    ShowCpuid(Arc<[CpuidEntryV1]>),
    /// Start at a kernel's entry point.
    Start(EntryPoint),
    /// Go on from this time, as if the instant had been its own.
    SetTime(VcpuTimeV1, HostInstant),
    /// Pass a branch-predictor barrier, and stay on the processor where it was until
    /// the guest has run.
    ForgetPredictions(Arc<Barrier>),
    /// Run the guest on this board.
    Run(Board),
    /// Read the state: these MSRs, or those that a snapshot can hold of them.
    Save {
        /// Numbers of the MSRs.
        msrs: Arc<[u32]>,
        /// Whether to leave out what cannot be set.
        probe: bool,
        /// The instant whose time is the state's.
        at: HostInstant,
    },
    /// Set these parts of the state.
    Load(Arc<ProcessorV1>, Parts),
}

/// A vCPU thread's answer.
#[derive(Debug)]
pub enum Report {
    /// To `ShowCpuid`, `Start`, `SetTime`, `ForgetPredictions` and `Load`.
    Done,
    /// To `Save`.
    Saved(Box<ProcessorV1>),
    /// To `Run`: the guest stopped.
    Stopped(Stop),
    /// KVM refused.
    Failed(VcpuError),
}

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
#[derive(Debug)]
pub struct Vcpu {
    orders: Sender<Order>,
    reports: Receiver<Report>,
    kick: KickSwitch,
    thread: JoinHandle<()>,
}

impl Vcpu {
    /// Starts the thread of vCPU `id`. It writes to `stopped` when a guest that
    /// it ran has stopped.
    ///
    /// # Errors
    /// When its run page cannot be mapped or the thread cannot be started.
    pub fn spawn(
        id: u8,
        fd: VcpuFd,
        shape: Shape,
        stopped: EventFd,
        jailed: Jailed,
    ) -> Result<Self, VcpuError> {
        let kick = KickSwitch::new(&fd).map_err(kernel("share the vCPU's run page"))?;
        let (orders, inbox) = channel();
        let (outbox, reports) = channel();
        let worker = Worker {
            id,
            fd,
            shape,
            stay: None,
            outbox,
            stopped,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || match jailed.confine_vcpu_thread() {
                Ok(()) => worker.serve(&inbox),
                // The answer to the first order; nobody hears it if there is none.
                Err(error) => drop(worker.outbox.send(Report::Failed(error.into()))),
            })
            .map_err(kernel("start a thread"))?;
        Ok(Self {
            orders,
            reports,
            kick,
            thread,
        })
    }

    /// Gives an order without waiting for its report.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn order(&self, order: Order) -> Result<(), VcpuError> {
        if matches!(order, Order::Run(_)) {
            self.kick.set(false);
        }
        self.orders.send(order).map_err(|_| VcpuError::Gone)
    }

    /// Waits for the report to an order.
    ///
    /// # Errors
    /// What the thread reports; [`VcpuError::Silent`] after a bounded time.
    pub fn report(&self) -> Result<Report, VcpuError> {
        match self.reports.recv_timeout(PATIENCE) {
            Ok(Report::Failed(error)) => Err(error),
            Ok(report) => Ok(report),
            Err(RecvTimeoutError::Timeout) => Err(VcpuError::Silent),
            Err(RecvTimeoutError::Disconnected) => Err(VcpuError::Gone),
        }
    }

    /// Waits for the report to an order that returns nothing.
    ///
    /// # Errors
    /// As [`Self::report`].
    pub fn done(&self) -> Result<(), VcpuError> {
        match self.report()? {
            Report::Done => Ok(()),
            _ => Err(VcpuError::Unexpected),
        }
    }

    /// Waits for the report to [`Order::Save`].
    ///
    /// # Errors
    /// As [`Self::report`].
    pub fn saved(&self) -> Result<Box<ProcessorV1>, VcpuError> {
        match self.report()? {
            Report::Saved(state) => Ok(state),
            _ => Err(VcpuError::Unexpected),
        }
    }

    /// Makes the guest stop; [`Self::paused`] waits for it.
    ///
    /// # Errors
    /// When the thread cannot be interrupted.
    pub fn kick(&self) -> Result<(), VcpuError> {
        self.kick.set(true);
        Ok(interrupt(&self.thread).map_err(kernel("interrupt the vCPU"))?)
    }

    /// Waits until a kicked guest has stopped.
    ///
    /// # Errors
    /// As [`Self::report`], or when it stopped for a reason of its own.
    pub fn paused(&self) -> Result<(), VcpuError> {
        match self.report()? {
            Report::Stopped(Stop::Paused) => Ok(()),
            Report::Stopped(stop) => Err(VcpuError::GuestStopped(stop)),
            _ => Err(VcpuError::Unexpected),
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
            Report::Done | Report::Saved(_) => None,
        }
    }
}

struct Worker {
    id: u8,
    fd: VcpuFd,
    shape: Shape,
    /// While the thread may not leave its processor.
    stay: Option<Stay>,
    outbox: Sender<Report>,
    stopped: EventFd,
}

impl Worker {
    fn serve(mut self, inbox: &Receiver<Order>) {
        while let Ok(order) = inbox.recv() {
            let runs = matches!(order, Order::Run(_));
            let report = self.execute(order).unwrap_or_else(Report::Failed);
            // Nobody left to tell, or to wake: the process is ending.
            if self.outbox.send(report).is_err() || (runs && self.stopped.write(1).is_err()) {
                return;
            }
        }
    }

    fn execute(&mut self, order: Order) -> Result<Report, VcpuError> {
        match order {
            Order::ShowCpuid(table) => {
                cpuid::show(&self.fd, &table, self.id).map_err(kernel("set the CPUID"))?;
                Ok(Report::Done)
            }
            Order::Start(entry) => {
                let reset = self
                    .fd
                    .get_sregs()
                    .map_err(kernel("read the system registers"))?;
                let sregs = entry.system_registers(&SregsV1::from(&reset));
                self.fd
                    .set_sregs(&(&sregs).into())
                    .map_err(kernel("set the system registers"))?;
                let regs = entry.registers();
                self.fd
                    .set_regs(&(&regs).into())
                    .map_err(kernel("set the registers"))?;
                Ok(Report::Done)
            }
            Order::SetTime(time, at) => {
                clock::start_vcpu(&self.fd, &time, at).map_err(kernel("set the guest's time"))?;
                Ok(Report::Done)
            }
            Order::ForgetPredictions(barrier) => {
                if let Some(stay) = self.stay.take() {
                    stay.release()
                        .map_err(kernel("let a vCPU's thread move again"))?;
                }
                self.stay = Some(barrier.load()?);
                Ok(Report::Done)
            }
            Order::Run(board) => Ok(Report::Stopped(self.run(&board))),
            Order::Save { msrs, probe, at } => {
                let listed = if probe {
                    msrs::settable(&self.fd, &msrs)
                } else {
                    msrs.to_vec()
                };
                let state = inventory::vcpu::capture(&Reading {
                    vcpu: &self.fd,
                    shape: &self.shape,
                    msrs: &listed,
                    at,
                })?;
                Ok(Report::Saved(Box::new(state)))
            }
            Order::Load(state, parts) => {
                inventory::vcpu::restore(&Setting {
                    vcpu: &self.fd,
                    shape: &self.shape,
                    state: &state,
                    parts,
                })?;
                Ok(Report::Done)
            }
        }
    }

    fn run(&mut self, board: &Board) -> Stop {
        let stop = run(&mut self.fd, board);
        if let Some(stay) = self.stay.take() {
            // One that cannot be moved any more is slower, not less safe.
            let _ = stay.release();
        }
        stop
    }
}
