//! A vCPU's thread: it runs the guest when it is told to, and says why it stopped.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::EventFd;

use super::barrier::{Barrier, Stay};
use super::entrance::Entrance;
use super::handle::VcpuError;
use super::run::{Board, Stop, run};
use crate::step::kernel;

/// What a vCPU thread is told to do.
#[derive(Debug)]
pub(super) enum Order {
    /// Pass a branch-predictor barrier, and stay on the processor where it was until
    /// the guest has run.
    ForgetPredictions(Arc<Barrier>),
    /// Run the guest on this board, and say when it is entered.
    Run(Board, Option<Arc<Entrance>>),
}

/// A vCPU thread's answer.
#[derive(Debug)]
pub(super) enum Report {
    /// To `ForgetPredictions`.
    Done,
    /// To `Run`: the guest stopped.
    Stopped(Stop),
    /// KVM refused.
    Failed(VcpuError),
}

/// What the thread has.
pub(super) struct Worker {
    pub fd: VcpuFd,
    /// While the thread may not leave its processor.
    pub stay: Option<Stay>,
    pub outbox: Sender<Report>,
    /// Written to when the guest stopped and nobody had asked for it.
    pub stopped: EventFd,
}

impl Worker {
    /// Follows orders until nobody can give any.
    pub fn serve(mut self, inbox: &Receiver<Order>) {
        while let Ok(order) = inbox.recv() {
            let report = self.execute(order).unwrap_or_else(Report::Failed);
            let is_news = match &report {
                Report::Stopped(Stop::Paused) => !self.is_kicked(),
                Report::Stopped(_) | Report::Failed(_) => true,
                Report::Done => false,
            };
            // Nobody left to tell, or to wake: the process is ending.
            if self.outbox.send(report).is_err() || (is_news && self.stopped.write(1).is_err()) {
                return;
            }
        }
    }

    /// Whether it was told to leave the guest.
    fn is_kicked(&mut self) -> bool {
        self.fd.get_kvm_run().immediate_exit != 0
    }

    fn execute(&mut self, order: Order) -> Result<Report, VcpuError> {
        match order {
            Order::ForgetPredictions(barrier) => {
                if let Some(stay) = self.stay.take() {
                    stay.release()
                        .map_err(kernel("let a vCPU's thread move again"))?;
                }
                self.stay = Some(barrier.load()?);
                Ok(Report::Done)
            }
            Order::Run(board, entrance) => {
                if let Some(entrance) = entrance {
                    entrance.enter();
                }
                Ok(Report::Stopped(self.run(&board)))
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
