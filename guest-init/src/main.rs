//! Placeholder entry point; replaced by the crate's first module.

fn main() {}
