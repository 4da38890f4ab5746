//! The worker node's agent: one per host.
//!
//! ```text
//!  api ─► admission ─► placement ─► lease ─► exec ─► process, pager
//!   │                                          │
//!  cli                 node (puts it together) └─► snapshots, store, images
//! ```
//!
//! Everything that waits has a bound, everything that comes from outside (a
//! caller, a VMM process, a guest, a file on disk) is checked where it comes in,
//! and a microVM about which there is any doubt is destroyed.

#![forbid(unsafe_code)]

pub mod admission;
pub mod api;
pub mod cli;
pub mod config;
pub mod exec;
pub mod function;
pub mod ids;
pub mod images;
pub mod keys;
pub mod lease;
pub mod lock;
pub mod logging;
pub mod node;
pub mod pager;
pub mod placement;
pub mod process;
pub mod snapshots;
pub mod store;
pub mod telemetry;
