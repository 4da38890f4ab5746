//! The processor architecture.
