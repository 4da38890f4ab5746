//! The VM's one owner: a thread that takes the agent's commands, moves the
//! machine from state to state, and serves its devices in between.
//!
//! ```text
//!              prepare           boot                    snapshot
//!   Started ─────────► Blank ──────────► Booted ─────────────────► Snapshotted
//!                        │ restore
//!                        ▼          run
//!                     Restored ───────────► Running ──┐
//!                      │ ▲  ▲                         │ reset
//!               verify └─┘  └─────────────────────────┘
//! ```
//!
//! The table is in [`state`]. A failed command ends the machine: what is half
//! done must not be used again, so only the process's end follows.

mod blank;
mod doorbells;
mod io;
mod live;
mod restore;
mod saved;
mod serve;
mod snapshot;
pub mod state;

pub use blank::{HostDevices, MAX_VCPUS};
pub use io::discard_notifications;
pub use live::{AssembleError, Live};
pub use restore::RestoreError;
pub use saved::{LoadError, MachineV1, Saved};
pub use serve::{ServeError, serve};
