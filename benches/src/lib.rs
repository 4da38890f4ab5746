//! Measurements of Snapback, and the one format in which all of them are reported.
//!
//! ```text
//!  main (command line) ─► demo, restore ─► node    a real agent on a temporary state directory
//!                           │          ─► client  HTTP on its Unix socket
//!                           │          ─► word_report  what the demo's function must answer
//!                           │          ─► floor, peers  what stands beside the figures
//!                           └──► report ─► JSON, table, plot
//! ```
//!
//! Nothing is simulated here: what is measured is what a caller of the agent gets.
//! Every wait has a bound.

#![forbid(unsafe_code)]

pub mod client;
pub mod demo;
pub mod facts;
pub mod floor;
pub mod function;
pub mod node;
pub mod peers;
pub mod progress;
pub mod report;
pub mod restore;
pub mod word_report;
