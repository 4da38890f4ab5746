//! The disk's state in a snapshot.

use serde::{Deserialize, Serialize};

/// A disk remembers nothing between requests but what was written to it. Its size
/// stands here so that a snapshot is not put onto another disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockV1 {
    /// Its size, in sectors of 512 bytes.
    pub capacity: u64,
    /// Clusters of 4 KiB that differ from its base. None does in a snapshot: what
    /// the disk held then is the base of every later life.
    pub own_clusters: u64,
}
