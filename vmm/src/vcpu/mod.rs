//! Virtual processors.
