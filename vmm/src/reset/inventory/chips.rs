//! The interrupt controllers of the VM, part by part.

use std::io;

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE};
use kvm_ioctls::VmFd;

use super::{Parts, difference_in_bytes, of_chips};
use crate::arch::x86_64::interrupts::{self, InterruptsV1};

/// How one controller is read, set and compared.
#[derive(Debug, Clone, Copy)]
pub struct ChipPart {
    /// Reads its field.
    pub capture: fn(&VmFd, &mut InterruptsV1) -> io::Result<()>,
    /// Sets it.
    pub restore: fn(&VmFd, &InterruptsV1) -> io::Result<()>,
    /// Says what differs.
    pub compare: fn(&InterruptsV1, &InterruptsV1) -> Vec<String>,
}

/// The first PIC.
pub const FIRST_PIC: ChipPart = ChipPart {
    capture: |vm, into| interrupts::read_chip(vm, KVM_IRQCHIP_PIC_MASTER, &mut into.pic_master),
    restore: |vm, from| interrupts::write_chip(vm, KVM_IRQCHIP_PIC_MASTER, &from.pic_master),
    compare: |now, then| difference_in_bytes(&now.pic_master, &then.pic_master),
};

/// The second PIC.
pub const SECOND_PIC: ChipPart = ChipPart {
    capture: |vm, into| interrupts::read_chip(vm, KVM_IRQCHIP_PIC_SLAVE, &mut into.pic_slave),
    restore: |vm, from| interrupts::write_chip(vm, KVM_IRQCHIP_PIC_SLAVE, &from.pic_slave),
    compare: |now, then| difference_in_bytes(&now.pic_slave, &then.pic_slave),
};

/// The I/O APIC.
pub const IO_APIC: ChipPart = ChipPart {
    capture: |vm, into| {
        into.ioapic = vec![0; interrupts::IOAPIC_LEN];
        interrupts::read_chip(vm, KVM_IRQCHIP_IOAPIC, &mut into.ioapic)
    },
    restore: |vm, from| {
        if from.ioapic.len() != interrupts::IOAPIC_LEN {
            return Err(io::ErrorKind::InvalidData.into());
        }
        interrupts::write_chip(vm, KVM_IRQCHIP_IOAPIC, &from.ioapic)
    },
    compare: |now, then| difference_in_bytes(&now.ioapic, &then.ioapic),
};

/// Reads all of them.
///
/// # Errors
/// What KVM reports.
pub fn capture(vm: &VmFd) -> io::Result<InterruptsV1> {
    let mut state = InterruptsV1::default();
    for (_, chip) in of_chips(Parts::ALL) {
        (chip.capture)(vm, &mut state)?;
    }
    Ok(state)
}

/// Sets those that are in `parts`.
///
/// # Errors
/// What KVM reports; `InvalidData` for an I/O APIC of another length.
pub fn restore(vm: &VmFd, state: &InterruptsV1, parts: Parts) -> io::Result<()> {
    of_chips(parts).try_for_each(|(_, chip)| (chip.restore)(vm, state))
}
