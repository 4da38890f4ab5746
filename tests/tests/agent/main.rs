//! The agent's program, from its socket and its command line, with real VMM processes, a real
//! guest and a real Python function. Each module is a topic, each test's name a promise.
//!
//! Most tests share one agent, which started on functions that another agent's life had made;
//! those that damage or stop one have their own, on a copy of its state. One test at a time:
//! tests look at processes and cgroups of the whole host.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests count as code outside tests"
)]

mod api;
mod concurrency;
mod create;
mod diffs;
mod exclusive;
mod extensions;
mod failures;
mod gather;
mod harness;
mod hooks;
mod host;
mod hostile;
mod isolation;
mod jail;
mod output;
mod pager;
mod payloads;
mod principals;
mod restarts;
mod snapshots;
mod streaming;
mod templates;
mod trust;
mod uniqueness;
