//! The entropy device's state in a snapshot.

use serde::{Deserialize, Serialize};

/// Nothing: what has not been asked for does not exist, and what has been is the
/// guest's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngV1 {}
