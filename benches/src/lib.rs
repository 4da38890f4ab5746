//! Measurements of Snapback, and the one format in which all of them are reported.
//!
//! ```text
//!  main (command line) ─► demo ─► node    a real agent on a temporary state directory
//!                           │  ─► client  HTTP on its Unix socket
//!                           │  ─► word_report  what the function must answer
//!                           └──► report ─► JSON, table
//! ```
//!
//! Nothing is simulated here: what is measured is what a caller of the agent gets.
//! Every wait has a bound.

#![forbid(unsafe_code)]

pub mod client;
pub mod demo;
pub mod floor;
pub mod node;
pub mod report;
pub mod word_report;
