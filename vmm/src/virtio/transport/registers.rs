//! The register window (table 4.1). Registers are 32 bits wide; anything else that
//! touches them is not a virtio driver and gets nothing.

/// "virt".
pub(super) const MAGIC: u32 = 0x7472_6976;
/// The version without "legacy" in its name.
pub(super) const VERSION: u32 = 2;
/// "SNAP": nobody looks at it.
pub(super) const VENDOR: u32 = 0x5041_4e53;

pub(super) const MAGIC_VALUE: u64 = 0x000;
pub(super) const DEVICE_VERSION: u64 = 0x004;
pub(super) const DEVICE_ID: u64 = 0x008;
pub(super) const VENDOR_ID: u64 = 0x00c;
pub(super) const DEVICE_FEATURES: u64 = 0x010;
pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
pub(super) const DRIVER_FEATURES: u64 = 0x020;
pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
pub(super) const QUEUE_SEL: u64 = 0x030;
pub(super) const QUEUE_NUM_MAX: u64 = 0x034;
pub(super) const QUEUE_NUM: u64 = 0x038;
pub(super) const QUEUE_READY: u64 = 0x044;
pub(super) const QUEUE_NOTIFY: u64 = 0x050;
pub(super) const INTERRUPT_STATUS: u64 = 0x060;
pub(super) const INTERRUPT_ACK: u64 = 0x064;
pub(super) const STATUS: u64 = 0x070;
pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
pub(super) const CONFIG: u64 = 0x100;

const _: () = assert!(QUEUE_NOTIFY == crate::bus::layout::NOTIFY_OFFSET);

/// Interrupt status: a queue has used buffers.
pub(super) const INTERRUPT_USED: u32 = 1 << 0;
/// Interrupt status: the configuration or the device's status changed.
pub(super) const INTERRUPT_CONFIG: u32 = 1 << 1;
