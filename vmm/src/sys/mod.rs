//! The kernel boundary: the only module of this crate with `unsafe` code.
//!
//! Everything here is a thin, safe function over one system call or one mapping;
//! policy lives with the callers.

#[cfg(test)]
pub mod allocation;
mod copy;
pub mod cpu;
pub mod dirty_log;
pub mod fds;
pub mod jail;
pub mod kick;
pub mod kvm;
pub mod mapping;
pub mod memfd;
pub mod spare;
pub mod tap;
pub mod uffd;
pub mod volatile_io;
