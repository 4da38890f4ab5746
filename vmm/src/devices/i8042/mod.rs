//! The keyboard controller, without a keyboard.

mod device;
mod state;
#[cfg(test)]
mod tests;

pub use device::I8042;
pub use state::I8042V1;
