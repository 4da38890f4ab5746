//! The interrupt controllers that KVM emulates for the whole VM: both PICs and
//! the I/O APIC. The local APICs belong to their processors.

use std::io;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

/// Registers of a PIC (`struct kvm_pic_state`), in bytes.
pub const PIC_LEN: usize = size_of::<kvm_bindings::kvm_pic_state>();
/// Registers of the I/O APIC (`struct kvm_ioapic_state`), in bytes.
pub const IOAPIC_LEN: usize = size_of::<kvm_bindings::kvm_ioapic_state>();
const _: () = assert!(PIC_LEN == 16 && IOAPIC_LEN == 216);

/// The interrupt controllers of a VM, each as the kernel's bytes: their layout is
/// the kernel's ABI, and nobody but KVM looks inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptsV1 {
    /// The first PIC.
    pub pic_master: [u8; PIC_LEN],
    /// The second PIC.
    pub pic_slave: [u8; PIC_LEN],
    /// The I/O APIC; always [`IOAPIC_LEN`] long.
    #[serde(with = "serde_bytes")]
    pub ioapic: Vec<u8>,
}

/// Reads all three.
///
/// # Errors
/// What KVM reports.
pub fn read(vm: &VmFd) -> io::Result<InterruptsV1> {
    let bytes = |id| -> io::Result<[u8; CHIP_LEN]> {
        let mut chip = kvm_irqchip {
            chip_id: id,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip).map_err(io::Error::from)?;
        Ok(crate::sys::kvm::irqchip_bytes(&chip))
    };
    let pic = |id| -> io::Result<[u8; PIC_LEN]> {
        let mut pic = [0; PIC_LEN];
        pic.copy_from_slice(&bytes(id)?[..PIC_LEN]);
        Ok(pic)
    };
    Ok(InterruptsV1 {
        pic_master: pic(KVM_IRQCHIP_PIC_MASTER)?,
        pic_slave: pic(KVM_IRQCHIP_PIC_SLAVE)?,
        ioapic: bytes(KVM_IRQCHIP_IOAPIC)?[..IOAPIC_LEN].to_vec(),
    })
}

/// Sets all three.
///
/// # Errors
/// What KVM reports; `InvalidData` for an I/O APIC of another length.
pub fn write(vm: &VmFd, state: &InterruptsV1) -> io::Result<()> {
    if state.ioapic.len() != IOAPIC_LEN {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let chips: [(u32, &[u8]); 3] = [
        (KVM_IRQCHIP_PIC_MASTER, &state.pic_master),
        (KVM_IRQCHIP_PIC_SLAVE, &state.pic_slave),
        (KVM_IRQCHIP_IOAPIC, &state.ioapic),
    ];
    for (id, bytes) in chips {
        let mut whole = [0; CHIP_LEN];
        whole[..bytes.len()].copy_from_slice(bytes);
        vm.set_irqchip(&crate::sys::kvm::irqchip(id, whole))
            .map_err(io::Error::from)?;
    }
    Ok(())
}

/// Room that the kernel leaves for a chip's registers, in bytes.
pub const CHIP_LEN: usize = 512;
