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
/// the kernel's ABI, and few look inside.
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

/// Whether every line of the I/O APIC raises an interrupt with a vector, if any: no NMI,
/// SMI or INIT (Intel I/O APIC datasheet 82093AA, 3.2.4).
#[must_use]
pub fn raises_only_vectors(state: &InterruptsV1) -> bool {
    const TABLE: usize = std::mem::offset_of!(kvm_bindings::kvm_ioapic_state, redirtbl);
    const MASKED: u32 = 1 << 16;
    const LOWEST_PRIORITY: u32 = 1;
    let Some((entries, [])) = state.ioapic.get(TABLE..).map(<[u8]>::as_chunks::<8>) else {
        return false;
    };
    entries.iter().all(|&[a, b, c, d, ..]| {
        let entry = u32::from_le_bytes([a, b, c, d]);
        entry & MASKED != 0 || entry >> 8 & 7 <= LOWEST_PRIORITY
    })
}

/// Room that the kernel leaves for a chip's registers, in bytes.
pub const CHIP_LEN: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn with_line(line: usize, entry: u64) -> InterruptsV1 {
        let mut ioapic = vec![0; IOAPIC_LEN];
        ioapic[24 + 8 * line..][..8].copy_from_slice(&entry.to_le_bytes());
        InterruptsV1 {
            ioapic,
            ..InterruptsV1::default()
        }
    }

    #[test]
    fn a_line_that_raises_something_else_than_a_vector_is_seen_unless_it_is_masked() {
        for line in [0, 23] {
            for mode in 0..8 {
                let entry = mode << 8 | 0x31;
                let plain = raises_only_vectors(&with_line(line, entry));
                assert_eq!(plain, mode <= 1, "line {line}, mode {mode}");
                assert!(raises_only_vectors(&with_line(line, entry | 1 << 16)));
            }
        }
        assert!(!raises_only_vectors(&InterruptsV1::default()), "no table");
    }
}
