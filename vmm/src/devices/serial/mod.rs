//! The serial line: the guest's log, one way.

mod device;
mod output;
mod state;
#[cfg(test)]
mod tests;

pub use device::Serial;
pub use state::{SerialRestoreError, SerialV1};
