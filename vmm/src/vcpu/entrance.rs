//! The moment in which a guest that stood at its snapshot is entered.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

/// What the vCPUs of a machine say to its supervisor when they enter their guest.
#[derive(Debug)]
pub struct Entrance {
    /// Wakes the supervisor.
    work: Arc<EventFd>,
    parallel: bool,
    entered: OnceLock<Instant>,
}

impl Entrance {
    /// Nobody has entered yet. `parallel`: the supervisor has a processor beside those of
    /// the vCPUs.
    #[must_use]
    pub fn new(work: Arc<EventFd>, parallel: bool) -> Self {
        Self {
            work,
            parallel,
            entered: OnceLock::new(),
        }
    }

    /// When the first vCPU entered the guest, if it has.
    #[must_use]
    pub fn entered(&self) -> Option<Instant> {
        self.entered.get().copied()
    }

    /// A vCPU's next step is into the guest. The supervisor is told, but not where it would
    /// take the processor from the guest to hear it.
    pub(super) fn enter(&self) {
        let is_first = self.entered.set(Instant::now()).is_ok();
        if is_first && self.parallel {
            // It looks by itself, too.
            let _ = self.work.write(1);
        }
    }
}
