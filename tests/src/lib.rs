//! Integration tests on real parts: the agent's program, VMM processes on KVM, a real guest
//! with a real Python function. Nothing here is pretended.
//!
//! ```text
//!  src/harness/            starts agents, speaks HTTP to them, looks at their processes
//!  tests/agent/            a test program: the agent from its socket and its command line
//!      <topic>.rs          promises, one test each
//!  tests/functions/        a test program: functions of every runtime and in every package, the
//!                          examples among them, and what an SDK that knows nothing of us sees
//!  python/                 that SDK's part
//!  functions/              what the tests' guests run: tour/ does what its event says
//! ```
//!
//! Run by `cargo xtask test`, which says where the programs (`SNAPBACK_BIN_DIR`) and the guest's
//! parts (`SNAPBACK_ASSETS`) are, on a host where `snapback doctor` passes. Needs root, as the
//! agent does.

#![allow(
    missing_docs,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests count as tests"
)]

pub mod harness;
