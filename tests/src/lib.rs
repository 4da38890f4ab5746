//! Integration tests on real parts: the agent's program, VMM processes on KVM, a real guest
//! with a real Python function. Nothing here is pretended.
//!
//! ```text
//!  tests/agent/            one test program: the agent from its socket and its command line
//!      harness/            starts agents, speaks HTTP to them, looks at their processes
//!      <topic>.rs          promises, one test each
//!  functions/tour/         the function that the tests' guests run: it does what its event says
//! ```
//!
//! Run by `cargo xtask test`, which says where the programs (`SNAPBACK_BIN_DIR`) and the guest's
//! parts (`SNAPBACK_ASSETS`) are, on a host where `snapback doctor` passes. Needs root, as the
//! agent does.
