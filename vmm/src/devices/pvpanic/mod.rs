//! The paravirtual panic notifier (QEMU, `docs/specs/pvpanic.rst`): one port by which
//! a guest's kernel says that it panicked, before it reboots or stands still.
//!
//! The text of the panic is on the serial line by then: the kernel prints it first.
//! The port has no state.

mod device;
#[cfg(test)]
mod tests;

pub use device::{read, write};
