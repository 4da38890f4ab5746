//! The disk's state in a snapshot.

use serde::{Deserialize, Serialize};

/// A read-only disk remembers nothing between requests. Its size stands here so
/// that a snapshot is not restored on top of another image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockV1 {
    /// Sectors of 512 bytes.
    pub capacity: u64,
}
