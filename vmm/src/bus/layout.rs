//! Where the devices lie: windows, ports and interrupt lines.
//!
//! The guest learns the same numbers from its ACPI tables (virtio-mmio devices,
//! generation id) or knows them (serial, i8042). They are part of a snapshot's machine: changing
//! one changes what a restored guest talks to.

/// Guest physical address of the first virtio-mmio window.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// Bytes of one virtio-mmio window.
pub const MMIO_WINDOW: u64 = 0x1000;
/// Interrupt line of the first virtio-mmio device; the next has the next line.
pub const FIRST_GSI: u32 = 5;
/// Most virtio-mmio devices of one machine.
pub const MAX_VIRTIO: usize = 16;
/// Offset of the `QueueNotify` register in a window: where the ioeventfds lie.
pub const NOTIFY_OFFSET: u64 = 0x50;

/// Guest physical address of the VM generation id, alone on its page: its guest
/// sees only 16 bytes of it, and a reset copies it back without anything else.
pub const GENERATION_ID: u64 = 0xe_0000;
/// Interrupt line of the generic event device, which tells of a new generation id.
pub const GED_GSI: u32 = 21;

/// First port of the serial line (COM1).
pub const SERIAL_PORT: u16 = 0x3f8;
/// Ports of the serial line.
pub const SERIAL_PORTS: u16 = 8;
/// Interrupt line of the serial line.
pub const SERIAL_GSI: u32 = 4;
/// Port through which a guest's kernel tells that it panicked.
pub const PVPANIC_PORT: u16 = 0x505;
/// First port of the power registers: sleep control, sleep status, reset.
pub const POWER_PORT: u16 = 0x600;
/// Ports of the power registers.
pub const POWER_PORTS: u16 = 3;
/// Data port of the keyboard controller.
pub const I8042_DATA: u16 = 0x60;
/// Command and status port of the keyboard controller.
pub const I8042_COMMAND: u16 = 0x64;

// The guest's I/O APIC has 24 pins; the windows stay below it (0xfec0_0000).
const _: () = assert!(MAX_VIRTIO == 16);
const _: () = assert!(FIRST_GSI + 16 <= GED_GSI && GED_GSI < 24);
const _: () = assert!(GENERATION_ID.is_multiple_of(0x1000));
const _: () = assert!(MMIO_BASE + 16 * MMIO_WINDOW <= 0xfec0_0000);

/// Where one virtio-mmio device lies and what it needs from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioSlot {
    /// The device's index on the bus.
    pub device: usize,
    /// Guest physical address of its window.
    pub base: u64,
    /// Its interrupt line.
    pub gsi: u32,
    /// How many queues it has, each with an ioeventfd at `base + NOTIFY_OFFSET`.
    pub queues: usize,
}
