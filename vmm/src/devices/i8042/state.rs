//! The keyboard controller's state in a snapshot.

use serde::{Deserialize, Serialize};

/// The keyboard controller; every value of every field is legal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042V1 {
    /// The configuration byte ("controller command byte").
    pub config: u8,
    /// A byte that the guest has not read yet.
    pub output: Option<u8>,
    /// The next data byte is the configuration byte.
    pub config_follows: bool,
}
