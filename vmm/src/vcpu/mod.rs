//! Virtual processors: one thread each, told what to do one order at a time.
//!
//! ```text
//!            Run                       kicked, or the guest stopped
//!   idle ──────────► in the guest ─────────────────────────────────► idle
//!    │ ▲
//!    └─┘ Save, Load: the state of a stopped vCPU
//! ```
//!
//! The supervisor owns the order of things; a vCPU thread only executes. Every
//! order is answered by one [`Report`]; while the guest runs, the report comes
//! when it stops.

mod barrier;
mod run;
mod thread;

pub use barrier::Barrier;
pub use run::{Board, Stop};
pub use thread::{Order, Report, Vcpu, VcpuError};
