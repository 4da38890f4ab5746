//! The interrupt controllers that KVM emulates for the whole VM: both PICs and
//! the I/O APIC. The local APICs belong to their processors.

use std::io;

use kvm_bindings::kvm_irqchip;
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

/// Registers of a PIC (`struct kvm_pic_state`), in bytes.
pub const PIC_LEN: usize = size_of::<kvm_bindings::kvm_pic_state>();
/// Registers of the I/O APIC (`struct kvm_ioapic_state`), in bytes.
pub const IOAPIC_LEN: usize = size_of::<kvm_bindings::kvm_ioapic_state>();
const _: () = assert!(PIC_LEN == 16 && IOAPIC_LEN == 216);

/// The interrupt controllers of a VM, each as the kernel's bytes: their layout is
/// the kernel's ABI, and nobody but KVM looks inside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptsV1 {
    /// The first PIC.
    pub pic_master: [u8; PIC_LEN],
    /// The second PIC.
    pub pic_slave: [u8; PIC_LEN],
    /// The I/O APIC; always [`IOAPIC_LEN`] long.
    #[serde(with = "serde_bytes")]
    pub ioapic: Vec<u8>,
}

/// Reads the first registers of chip `id`, as many as there is room for.
///
/// # Errors
/// What KVM reports; `InvalidInput` for more room than a chip has registers.
pub fn read_chip(vm: &VmFd, id: u32, into: &mut [u8]) -> io::Result<()> {
    let mut chip = kvm_irqchip {
        chip_id: id,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip).map_err(io::Error::from)?;
    let bytes = crate::sys::kvm::irqchip_bytes(&chip);
    let registers = bytes.get(..into.len());
    into.copy_from_slice(registers.ok_or(io::ErrorKind::InvalidInput)?);
    Ok(())
}

/// Sets the registers of chip `id`.
///
/// # Errors
/// What KVM reports; `InvalidInput` for more registers than a chip has.
pub fn write_chip(vm: &VmFd, id: u32, registers: &[u8]) -> io::Result<()> {
    let mut whole = [0; CHIP_LEN];
    let room = whole.get_mut(..registers.len());
    room.ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(registers);
    vm.set_irqchip(&crate::sys::kvm::irqchip(id, whole))
        .map_err(io::Error::from)
}

/// Room that the kernel leaves for a chip's registers, in bytes.
pub const CHIP_LEN: usize = 512;
