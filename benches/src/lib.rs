//! Measurements of Snapback, and the one format in which all of them are reported.
//!
//! ```text
//!  main (command line) ─► demo, restore, reset, invoke
//!                           │  ─► node, client  a real agent on a temporary state directory
//!                           │  ─► machine  a VMM that is driven without an agent
//!                           │  ─► subjects, calls, series  functions, requests, samples
//!                           │  ─► word_report  what the demo's function must answer
//!                           │  ─► floor, peers  what stands beside the figures
//!                           └──► report ─► JSON, table, plot
//! ```
//!
//! Nothing is simulated here: what is measured is what a caller of the agent gets, or
//! what the agent gets of its VMM.
//! Every wait has a bound.

#![forbid(unsafe_code)]

pub mod calls;
pub mod client;
pub mod demo;
pub mod facts;
pub mod floor;
pub mod function;
pub mod invoke;
pub mod machine;
pub mod node;
pub mod peers;
pub mod progress;
pub mod report;
pub mod reset;
pub mod restore;
pub mod series;
pub mod subjects;
pub mod word_report;
