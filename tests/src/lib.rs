//! Integration tests on real parts.
