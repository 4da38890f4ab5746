//! The VM generation id (Microsoft, "Virtual Machine Generation ID", 2012): 16
//! bytes in guest memory that are new each time a guest goes on from a snapshot,
//! and an interrupt that says so. Linux reseeds its random number generator then.
//!
//! ```text
//!  Run ──► new id into the page ──► GED's line ──► _EVT ──► Notify(VGEN, 0x80)
//! ```
//!
//! The device has no state of its own: the id lies in guest memory, which a reset
//! puts back like any other page, and the next `Run` writes a new one.

mod device;
#[cfg(test)]
mod tests;

pub use device::{ID_LEN, RenewError, renew};
