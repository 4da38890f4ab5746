//! The net device's state in a snapshot.

use serde::{Deserialize, Serialize};

/// What the guest's driver has read of its device; frames are nobody's state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetV1 {
    /// The guest's address.
    pub mac: [u8; 6],
}
