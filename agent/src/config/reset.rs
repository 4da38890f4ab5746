//! What happens to a microVM after its request.

use serde::Deserialize;

/// What happens to a microVM after its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reset {
    /// Whether it is put back to its snapshot and serves on. Otherwise it is
    /// destroyed, and every request has a microVM that was restored for it.
    pub in_place: bool,
}

impl Default for Reset {
    fn default() -> Self {
        Self { in_place: true }
    }
}
