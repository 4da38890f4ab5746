//! The snapshot format.
