//! The Lambda Runtime API, as the function's runtime sees it on 127.0.0.1:9001.
//!
//! * [`state`]: the states and every transition between them, in one table.
//! * [`route`]: which request is which call.
//! * [`errors`]: what a refused call and a failed function look like, in JSON.
//! * [`connection`]: one client's connection, without blocking.
//! * [`server`]: the listener and its bounded set of connections.

pub mod connection;
pub mod errors;
pub mod route;
pub mod server;
pub mod state;
