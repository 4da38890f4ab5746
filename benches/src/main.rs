//! The command line of the measurements.
fn main() {}
