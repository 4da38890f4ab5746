//! Entry point of the VMM process.

fn main() {}
