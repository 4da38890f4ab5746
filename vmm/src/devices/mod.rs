//! The devices that are not virtio: a serial line for logs, a keyboard controller
//! that only knows how to reset the machine, and the VM generation id.

pub mod i8042;
pub mod serial;
pub mod vmgenid;
