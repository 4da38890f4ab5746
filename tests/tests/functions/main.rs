//! Functions that people bring: every runtime, every kind of package, the examples, and an SDK
//! that knows nothing of us.
//!
//! All tests share one agent, and each function one boot.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests count as code outside tests"
)]

mod boto3;
mod examples;
mod layout;
mod packages;
mod shared;
mod uniqueness;
