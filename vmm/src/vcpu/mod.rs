//! Virtual processors: one thread each, told what to do one order at a time.
//!
//! ```text
//!            run                       kicked, or the guest stopped
//!   idle ──────────► in the guest ─────────────────────────────────► idle
//!    │ ▲
//!    └─┘ save, load: the state of a stopped vCPU, by the supervisor itself
//! ```
//!
//! The supervisor owns the order of things; a vCPU thread only runs its guest. Every
//! order is answered by one report; while the guest runs, the report comes when it
//! stops.

mod barrier;
mod entrance;
mod handle;
mod run;
mod thread;

pub use barrier::Barrier;
pub use entrance::Entrance;
pub use handle::{Vcpu, VcpuError};
pub use run::{Board, Stop};
