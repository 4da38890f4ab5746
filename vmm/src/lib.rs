//! The virtual machine monitor: one jailed process per microVM.
//!
//! The library half exists so that the agent can share the kernel boundary
//! ([`sys`]), read snapshots ([`snapshot`]) and probe the host ([`probe`]); the
//! program in `main.rs` is what runs a microVM.
//!
//! ```text
//!  control ──► supervisor ──► vcpu ──► bus ──► devices, virtio
//!                  │            │                  │
//!                  └── memory, reset, snapshot ────┴──► sys (the only unsafe code)
//! ```

pub mod arch;
pub mod bus;
pub mod control;
pub mod devices;
pub mod entropy;
pub mod jail;
pub mod memory;
pub mod poll;
pub mod probe;
pub mod reset;
pub mod snapshot;
pub mod step;
pub mod supervisor;
pub mod sys;
pub mod vcpu;
pub mod virtio;
