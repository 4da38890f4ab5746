//! The devices that are not virtio: a serial line for logs and a keyboard
//! controller that only knows how to reset the machine.

pub mod i8042;
pub mod serial;
