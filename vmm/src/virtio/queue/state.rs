//! A queue's state in a snapshot.

use serde::{Deserialize, Serialize};

/// One queue. Whether indices suppress notifications follows from the features
/// that the driver accepted; everything else of the queue is in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueV1 {
    /// The size that the driver chose.
    pub size: u16,
    /// The driver has finished setting it up.
    pub ready: bool,
    /// Guest physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest physical address of the available ring ("driver area").
    pub avail_ring: u64,
    /// Guest physical address of the used ring ("device area").
    pub used_ring: u64,
    /// Index of the next available entry to take.
    pub next_avail: u16,
    /// Index of the next used entry to write.
    pub next_used: u16,
}

/// Why a queue's state was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueRestoreError {
    /// It is ready, but its size or addresses are not those of a usable queue.
    #[error("not a usable queue")]
    Unusable,
    /// It is not ready, and yet has run.
    #[error("has run without being ready")]
    NotReady,
}
