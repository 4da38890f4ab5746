//! Running a guest until it stops: exits to devices, effects to KVM.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Bus, Effects, GuestEnd};
use crate::memory::{Ahead, GuestRam};

/// What the vCPU threads and the supervisor share of one machine.
#[derive(Debug, Clone)]
pub struct Board {
    /// The VM, for interrupts.
    pub vm: Arc<VmFd>,
    /// All devices.
    pub bus: Arc<Mutex<Bus>>,
    /// Guest memory as devices see it.
    pub ram: GuestRam,
    /// Wakes the supervisor for work that a device left over.
    pub work: Arc<EventFd>,
    /// Pages to be made the machine's own.
    pub ahead: Arc<Ahead>,
}

impl Board {
    /// The devices. A thread that panicked while it held them cannot have left
    /// them half changed in a way that matters: the process ends on a panic.
    pub fn bus(&self) -> MutexGuard<'_, Bus> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises and lowers the lines that `effects` names. `KVM_IRQ_LINE` delivers
    /// before it returns; an irqfd would deliver from a work queue, perhaps only
    /// after a reset.
    ///
    /// # Errors
    /// What KVM reports.
    pub fn pulse(&self, effects: Effects) -> io::Result<()> {
        for gsi in effects.interrupts.iter() {
            self.vm.set_irq_line(gsi, true).map_err(io::Error::from)?;
            self.vm.set_irq_line(gsi, false).map_err(io::Error::from)?;
        }
        Ok(())
    }
}

/// Why a vCPU left the guest for good or for now. Of several vCPUs' reasons, the
/// greatest is the machine's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// It was kicked; the guest can go on.
    Paused,
    /// The guest is over by its own doing.
    Ended(GuestEnd),
    /// KVM or the VMM cannot go on.
    Broken(Broken),
}

/// What KVM stopped with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Broken {
    /// The processor did not enter the guest.
    #[error("the processor did not enter the guest (hardware reason {0:#x})")]
    Entry(u64),
    /// KVM could not emulate an instruction.
    #[error("KVM cannot emulate an instruction of the guest ({0})")]
    Emulation(String),
    /// KVM has another internal error.
    #[error("KVM has the internal error {0}")]
    Internal(u32),
    /// An exit that this VMM does not know.
    #[error("KVM stopped for a reason that this VMM does not know ({0})")]
    Unknown(String),
    /// A system call failed.
    #[error("{step} failed: {reason}")]
    Kernel {
        /// Which one.
        step: &'static str,
        /// What the kernel says.
        reason: String,
    },
}

fn kernel(step: &'static str, error: impl std::fmt::Display) -> Stop {
    Stop::Broken(Broken::Kernel {
        step,
        reason: error.to_string(),
    })
}

/// Runs the guest until it stops.
pub fn run(vcpu: &mut VcpuFd, board: &Board) -> Stop {
    loop {
        let stop = match vcpu.run() {
            Ok(VcpuExit::InternalError) => Some(internal_error(vcpu)),
            Ok(exit) => handle(exit, board),
            Err(errno) => match io::Error::from(errno).kind() {
                io::ErrorKind::Interrupted => Some(Stop::Paused),
                io::ErrorKind::WouldBlock => None,
                _ => Some(kernel("KVM_RUN", errno)),
            },
        };
        if let Some(stop) = stop {
            return stop;
        }
    }
}

fn handle(exit: VcpuExit<'_>, board: &Board) -> Option<Stop> {
    match exit {
        VcpuExit::MmioRead(address, data) => board.bus().mmio_read(address, data),
        VcpuExit::IoIn(port, data) => board.bus().pio_read(port, data),
        VcpuExit::MmioWrite(address, data) => {
            let effects = board.bus().mmio_write(address, data, &board.ram);
            return apply(board, effects);
        }
        VcpuExit::IoOut(port, data) => {
            let effects = board.bus().pio_write(port, data);
            return apply(board, effects);
        }
        // A triple fault.
        VcpuExit::Shutdown => return Some(Stop::Ended(GuestEnd::Rebooted)),
        VcpuExit::FailEntry(reason, _) => return Some(Stop::Broken(Broken::Entry(reason))),
        VcpuExit::Intr => {}
        other => return Some(Stop::Broken(Broken::Unknown(format!("{other:?}")))),
    }
    None
}

/// Does what a device asked for; work that it left over is the supervisor's.
fn apply(board: &Board, effects: Effects) -> Option<Stop> {
    if let Err(error) = board.pulse(effects) {
        return Some(kernel("KVM_IRQ_LINE", error));
    }
    if effects.more_work && board.work.write(1).is_err() {
        return Some(kernel("waking the supervisor", io::Error::last_os_error()));
    }
    effects.ended.map(Stop::Ended)
}

fn internal_error(vcpu: &mut VcpuFd) -> Stop {
    let (suberror, rip) = crate::sys::kvm::internal_error(vcpu);
    if suberror == KVM_INTERNAL_ERROR_EMULATION {
        return Stop::Broken(Broken::Emulation(format!("at {rip:#x}")));
    }
    Stop::Broken(Broken::Internal(suberror))
}
