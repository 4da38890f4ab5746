//! The environments and who has them. One task, the pool's, owns every state.
//!
//! ```text
//!  acquire ─► pool task ─► placement::choose ─► Lease ─► start ─► (invoke) ─► finish
//!                ▲                                                              │
//!                └── tasks: blank, restore, reset, verify, end ◄────────────────┘
//! ```
//!
//! For each shape in use, blank microVMs wait for a snapshot (`blanks`).
//!
//! A part of the resets is verified before the environment is given away again. Between
//! two principals' requests there is what [`Separation`] says.
//!
//! A lease that is dropped instead of finished poisons its environment.

mod blanks;
mod client;
mod machines;
mod placing;
mod pool;
mod principal;
mod returning;
mod ticket;

pub mod state;

pub use client::{BlankLimits, PoolClient, PoolLimits, PoolSummary, Unwanted};
pub use machines::Machines;
pub use pool::Pool;
pub use principal::{Principal, Separation};
pub use state::State;
pub use ticket::{BlankPool, Lease, LeaseError, ResetOutcome};

#[cfg(test)]
mod tests;
