//! Power off and reset of a hardware-reduced machine (ACPI 6.5, chapters 4.8.3.6
//! and 4.8.3.7): the sleep control and status registers and the reset register that
//! the FADT names.
//!
//! The registers have no state: the only sleep state is S5, from which nobody wakes,
//! and what a write asks for happens at once.

mod device;
#[cfg(test)]
mod tests;

pub use device::{RESET, RESET_VALUE, S5_TYPE, SLEEP_CONTROL, SLEEP_STATUS, read, write};
