//! The devices that are not virtio: a serial line for logs, a keyboard controller
//! that only knows how to reset the machine, the registers by which a guest powers
//! off, reboots or tells of a panic, and the VM generation id.

pub mod i8042;
pub mod power;
pub mod pvpanic;
pub mod serial;
pub mod vmgenid;
