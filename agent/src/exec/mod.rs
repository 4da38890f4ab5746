//! The verbs on a microVM: build, gather, restore, invoke, reset, verify.
//!
//! ```text
//!  build:   spawn ─ Prepare ─ Boot ─ (Hello, Init, Ready) ─ Snapshot ─ end of the process
//!  blank:   spawn ─ Prepare
//!  gather:  spawn ─ Prepare ─ Continue ─ (Gather, Gathered) ─ Snapshot ─ end of the process
//!  invoke:  (Resume) ─ Run, or Restore where it is blank ─ (Resumed, Invoke, Response)
//!  reset:   Reset
//!  verify:  Verify
//! ```
//!
//! In parentheses what goes over the invocation channel. Nothing here knows which
//! environment serves which request: that is `lease`'s.

mod answer;
mod build;
mod channel;
mod deadline;
mod doubt;
mod exchange;
mod gather;
mod invoke;
mod logs;
mod platform;
mod reset;
mod restore;
mod resume;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use build::{BuildError, BuildFacts, BuildInput, Built};
pub use channel::{Channel, ChannelError};
pub use doubt::{Doubt, Poison, Poisonous};
pub use exchange::Rest;
pub use gather::Gathered;
pub use invoke::{Completed, Invocation, InvokeError, InvokeFacts, Outcome};
pub use logs::LOG_TAIL;
pub use reset::{ResetEnd, ResetError, VerifyError};
pub use restore::{Blank, Environment, RestoreError};
pub use stream::{Piece, Sink, parts};

use crate::config::{self, Timeouts};
use crate::pager::Pager;
use crate::process::Launcher;

/// Does the verbs.
#[derive(Debug)]
pub struct Executor {
    launcher: Launcher,
    pager: Pager,
    timeouts: Timeouts,
    command_line: String,
    paging: config::Pager,
    generation: AtomicU64,
}

impl Executor {
    /// `first_generation` is above every generation that an earlier life of the
    /// agent gave to a restored guest. `paging` says what is brought to a snapshot's
    /// memory ahead.
    #[must_use]
    pub fn new(
        launcher: Launcher,
        pager: Pager,
        timeouts: Timeouts,
        command_line: String,
        paging: config::Pager,
        first_generation: u64,
    ) -> Arc<Self> {
        let generation = AtomicU64::new(first_generation);
        Arc::new(Self {
            launcher,
            pager,
            timeouts,
            command_line,
            paging,
            generation,
        })
    }

    /// Waits until every VMM process is gone. Bounded by the caller.
    pub async fn all_ended(&self) {
        self.launcher.all_reaped().await;
    }

    /// How many threads bring missing pages; with none, no microVM can be restored that
    /// needs them.
    #[must_use]
    pub fn pager_threads(&self) -> usize {
        self.pager.threads()
    }

    fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed)
    }
}

/// The wall clock, in nanoseconds since the Unix epoch.
#[must_use]
pub fn wall_clock_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The nanoseconds since `start`.
#[must_use]
pub fn elapsed_ns(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
