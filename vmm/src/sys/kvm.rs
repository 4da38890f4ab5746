//! What kvm-ioctls has no safe call for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_irqchip,
    kvm_lapic_state, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::mapping::Reservation;
use crate::arch::x86_64::interrupts::CHIP_LEN;

/// `/dev/kvm`, already open.
#[must_use]
pub fn from_fd(fd: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open and its ownership moves into the `Kvm`. If
    // it is something else than /dev/kvm, its requests fail with ENOTTY.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// Points memory slot `slot`, at guest address `base`, to `memory`. Calling it
/// again with another `log_dirty` turns dirty tracking on or off.
///
/// # Errors
/// What KVM reports.
pub fn set_memory_slot(
    vm: &VmFd,
    slot: u16,
    base: u64,
    memory: &Reservation,
    log_dirty: bool,
) -> io::Result<()> {
    let (userspace_addr, memory_size) = memory.range()?;
    let region = kvm_userspace_memory_region {
        slot: u32::from(slot),
        flags: if log_dirty {
            KVM_MEM_LOG_DIRTY_PAGES
        } else {
            0
        },
        guest_phys_addr: base,
        memory_size,
        userspace_addr,
    };
    // SAFETY: the range is a reservation, which stays mapped until the process
    // ends, so the slot can never point at memory that is used for anything else.
    unsafe { vm.set_user_memory_region(region) }.map_err(io::Error::from)
}

/// Another handle of a vCPU of `vm`, for a thread that does not run it. KVM lets one of
/// them in at a time.
///
/// # Errors
/// When the descriptor cannot be duplicated or its run page not mapped once more.
pub fn second_handle(vm: &VmFd, vcpu: &VcpuFd) -> io::Result<VcpuFd> {
    // SAFETY: the vCPU's descriptor is open for as long as `vcpu` is borrowed.
    let own = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) }.try_clone_to_owned()?;
    // SAFETY: the descriptor is open, of a vCPU of this VM, and owned by nothing else:
    // its ownership moves into the result.
    let second = unsafe { vm.create_vcpu_from_rawfd(own.into_raw_fd()) };
    second.map_err(io::Error::from)
}

/// Size of a plain XSAVE area without `KVM_CAP_XSAVE2`, in bytes.
pub const XSAVE_MIN: usize = 4096;

/// `KVM_GET_XSAVE2`: `_IOR(KVMIO, 0xcf, struct kvm_xsave)`.
const GET_XSAVE2: libc::Ioctl = 0x9000_aecf;
/// `KVM_GET_XSAVE`: `_IOR(KVMIO, 0xa4, struct kvm_xsave)`.
const GET_XSAVE: libc::Ioctl = 0x9000_aea4;
/// `KVM_SET_XSAVE`: `_IOW(KVMIO, 0xa5, struct kvm_xsave)`.
const SET_XSAVE: libc::Ioctl = 0x5000_aea5;

/// Reads the whole extended state. `size` is what `KVM_CAP_XSAVE2` answers for
/// the VM (0 where it is missing: then the plain area is read).
///
/// # Errors
/// What KVM reports.
pub fn get_xsave(vcpu: &VcpuFd, size: usize) -> io::Result<Vec<u8>> {
    let request = if size == 0 { GET_XSAVE } else { GET_XSAVE2 };
    let mut area = vec![0_u8; size.max(XSAVE_MIN)];
    // SAFETY: the kernel writes at most the size that KVM_CAP_XSAVE2 names for
    // this VM (4096 bytes for the plain request), and `area` is that long.
    let done = unsafe { libc::ioctl(vcpu.as_raw_fd(), request, area.as_mut_ptr()) };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(area)
}

/// Sets the whole extended state. `size` is as in [`get_xsave`].
///
/// # Errors
/// `InvalidInput` when `area` is not of the size this VM needs, else what KVM
/// reports.
pub fn set_xsave(vcpu: &VcpuFd, size: usize, area: &[u8]) -> io::Result<()> {
    if area.len() != size.max(XSAVE_MIN) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the kernel reads at most the size that KVM_CAP_XSAVE2 names for
    // this VM, and `area` was just checked to be that long.
    let done = unsafe { libc::ioctl(vcpu.as_raw_fd(), SET_XSAVE, area.as_ptr()) };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The host's time stamp counter, now.
#[must_use]
pub fn host_tsc() -> u64 {
    // SAFETY: RDTSC exists on every x86_64 processor and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// `KVM_SET_DEVICE_ATTR`: `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`.
const SET_DEVICE_ATTR: libc::Ioctl = 0x4018_aee1;
const _: () = assert!(size_of::<kvm_device_attr>() == 0x18);

/// Sets what is added to the host's time stamp counter to make the guest's
/// (`KVM_VCPU_TSC_OFFSET`). Unlike a write of the MSR, this is exact: KVM takes a
/// written value that is near the current one for an attempt to synchronise.
///
/// # Errors
/// What KVM reports.
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> io::Result<()> {
    let address = (&raw const offset).expose_provenance();
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: u64::try_from(address).map_err(io::Error::other)?,
        flags: 0,
    };
    // SAFETY: the kernel reads `attribute` and, because of its group, the eight
    // bytes of `offset`; both live until the call returns.
    let done = unsafe { libc::ioctl(vcpu.as_raw_fd(), SET_DEVICE_ATTR, &raw const attribute) };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `KVM_GET_DEVICE_ATTR`: `_IOW(KVMIO, 0xe2, struct kvm_device_attr)`.
const GET_DEVICE_ATTR: libc::Ioctl = 0x4018_aee2;

/// What is added to the host's time stamp counter to make the guest's
/// (`KVM_VCPU_TSC_OFFSET`).
///
/// # Errors
/// What KVM reports.
pub fn tsc_offset(vcpu: &VcpuFd) -> io::Result<u64> {
    let mut offset = 0_u64;
    let address = (&raw mut offset).expose_provenance();
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: u64::try_from(address).map_err(io::Error::other)?,
        flags: 0,
    };
    // SAFETY: the kernel reads `attribute` and, because of its group, writes the
    // eight bytes of `offset`; both live until the call returns.
    let done = unsafe { libc::ioctl(vcpu.as_raw_fd(), GET_DEVICE_ATTR, &raw const attribute) };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(offset)
}

/// The registers in `chip`, whichever it is, as the kernel's bytes.
#[must_use]
pub fn irqchip_bytes(chip: &kvm_irqchip) -> [u8; CHIP_LEN] {
    let mut bytes = [0; CHIP_LEN];
    // SAFETY: every member of the union is plain data, and `dummy`, of CHIP_LEN
    // bytes, covers all of it; `chip` was made zeroed, so each byte has a value.
    let dummy = unsafe { chip.chip.dummy };
    for (byte, kernel) in bytes.iter_mut().zip(dummy) {
        *byte = kernel.cast_unsigned();
    }
    bytes
}

/// A chip of `id` with these registers.
#[must_use]
pub fn irqchip(id: u32, bytes: [u8; CHIP_LEN]) -> kvm_irqchip {
    let mut chip = kvm_irqchip {
        chip_id: id,
        ..Default::default()
    };
    chip.chip.dummy = bytes.map(u8::cast_signed);
    chip
}

/// A local APIC's registers as bytes.
#[must_use]
pub fn lapic_bytes(lapic: &kvm_lapic_state) -> [u8; 1024] {
    lapic.regs.map(i8::cast_unsigned)
}

/// A local APIC of these registers.
///
/// # Errors
/// `InvalidInput` when there are not 1,024 bytes.
pub fn lapic_from_bytes(bytes: &[u8]) -> io::Result<kvm_lapic_state> {
    let bytes: [u8; 1024] = bytes.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(kvm_lapic_state {
        regs: bytes.map(u8::cast_signed),
    })
}

/// What `KVM_EXIT_INTERNAL_ERROR` was about, and where the guest was (0 when its
/// registers cannot be read).
pub fn internal_error(vcpu: &mut VcpuFd) -> (u32, u64) {
    // SAFETY: every member of the exit union is plain data, and KVM filled in
    // `internal` for the exit that the caller has just seen.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    (suberror, vcpu.get_regs().map_or(0, |regs| regs.rip))
}
