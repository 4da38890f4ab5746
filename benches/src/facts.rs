//! What the agent says that it measured.

use std::time::Duration;

use serde::Deserialize;
use snapback_proto::control::ResetReport;

/// `GET /v1/functions/{name}`, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Function {
    /// Of its one boot.
    pub build: Build,
    /// Its snapshot's name.
    pub snapshot: String,
}

/// The one boot of a function.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Build {
    /// From the start of the VMM process to guest-init's first word, in nanoseconds.
    pub boot_ns: u64,
    /// From there to the function's ready point, in nanoseconds.
    pub init_ns: u64,
    /// Pausing the microVM and writing its state, in nanoseconds.
    pub snapshot_ns: u64,
}

impl Build {
    /// What a caller would wait for without a snapshot: from nothing to a function
    /// that takes requests.
    #[must_use]
    pub fn cold_boot(&self) -> Duration {
        Duration::from_nanos(self.boot_ns.saturating_add(self.init_ns))
    }
}

/// `GET /v1/requests/{id}`, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Record {
    /// The microVM that served the request.
    pub environment: String,
    /// It never served another one before.
    pub fresh: bool,
    /// The restore generation, different for every request.
    pub generation: u64,
    /// Whether a blank microVM waited for it (`hit` or `miss`), when it is fresh.
    pub blank_pool: Option<String>,
    /// The restore of this microVM, command to reply, in nanoseconds.
    pub restore_ns: u64,
    /// In the VMM, from the arrival of the command that let the guest run to the moment
    /// at which it was entered, in nanoseconds.
    pub enter_ns: u64,
    /// Page faults that the pager answered for this microVM.
    pub userfaults: u64,
    /// From the departure of that command to the guest's confirmation, in nanoseconds.
    pub resume_ns: u64,
    /// From the event's departure to the answer's arrival, in nanoseconds.
    pub function_ns: u64,
    /// The reset after the request.
    pub reset: Option<ResetReport>,
    /// Why the microVM was destroyed instead.
    pub destroyed: Option<String>,
}

/// `GET /readyz`, as far as it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Readiness {
    /// The node's microVMs.
    pub environments: Environments,
}

/// MicroVMs by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Environments {
    /// Without a snapshot, waiting.
    pub blank: usize,
    /// On the way to wait for a snapshot.
    pub blank_starting: usize,
    /// On the way to be restored.
    pub starting: usize,
    /// With a request.
    pub busy: usize,
    /// Being reset.
    pub resetting: usize,
}
