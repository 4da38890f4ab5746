//! Firecracker and Cloud Hypervisor as peers, without their programs: a script stands for the
//! process, and a real HTTP server on the Unix socket that the process was given writes down
//! what it is asked. The requests are held against what the programs' documents say; the
//! programs themselves are not run here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod cloud_hypervisor;
mod firecracker;
mod stand_in;
