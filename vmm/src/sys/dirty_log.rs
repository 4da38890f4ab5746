//! KVM's dirty bitmap of a memory slot, with protection by hand (kernel document
//! `virt/kvm/api.rst`, `KVM_GET_DIRTY_LOG`, `KVM_CLEAR_DIRTY_LOG` and
//! `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`): reading changes nothing, and only a page whose
//! bit is cleared is write-protected again.

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1, kvm_enable_cap,
};
use kvm_ioctls::VmFd;

/// Pages of one word of a bitmap.
pub const PAGES_PER_WORD: usize = 64;

/// `KVM_GET_DIRTY_LOG`: `_IOW(KVMIO, 0x42, struct kvm_dirty_log)`.
const GET_DIRTY_LOG: libc::Ioctl = 0x4010_ae42;
/// `KVM_CLEAR_DIRTY_LOG`: `_IOWR(KVMIO, 0xc0, struct kvm_clear_dirty_log)`.
const CLEAR_DIRTY_LOG: libc::Ioctl = 0xc018_aec0;

const _: () = assert!(size_of::<kvm_dirty_log>() == 16);
const _: () = assert!(size_of::<kvm_clear_dirty_log>() == 24);

/// Has pages protected by hand; before the first memory slot is set.
///
/// # Errors
/// What KVM reports.
pub fn enable(vm: &VmFd) -> io::Result<()> {
    let cap = kvm_enable_cap {
        cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        args: [KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap).map_err(io::Error::from)
}

/// Reads which of the `pages` pages of `slot` were written since their bits were
/// cleared.
///
/// # Errors
/// What KVM reports; `InvalidInput` when `into` is not one bit for each page.
pub fn read(vm: &VmFd, slot: u16, pages: usize, into: &mut [u64]) -> io::Result<()> {
    if into.len() != pages.div_ceil(PAGES_PER_WORD) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let log = kvm_dirty_log {
        slot: slot.into(),
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
            dirty_bitmap: into.as_mut_ptr().cast(),
        },
        ..Default::default()
    };
    // SAFETY: KVM writes one bit for each page of the slot, rounded up to whole words.
    // `into` has so many words if the slot has `pages` pages, which the caller knows
    // from having set it (`GuestMemory::reserve` is the only place); a slot that does
    // not exist is an error.
    let result = unsafe { libc::ioctl(vm.as_raw_fd(), GET_DIRTY_LOG, &raw const log) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Clears the bits of `slot`, which has `pages` pages, that are set in `words`, and
/// write-protects their pages. `words` begins with the page of word `first`.
///
/// # Errors
/// What KVM reports; `InvalidInput` when there are no such words.
pub fn clear(vm: &VmFd, slot: u16, pages: usize, first: usize, words: &[u64]) -> io::Result<()> {
    let from = first * PAGES_PER_WORD;
    let count = pages
        .checked_sub(from)
        .map(|left| left.min(words.len() * PAGES_PER_WORD));
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let Some(count) = count.filter(|count| count.div_ceil(PAGES_PER_WORD) == words.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let log = kvm_clear_dirty_log {
        slot: slot.into(),
        num_pages: u32::try_from(count).map_err(invalid)?,
        first_page: u64::try_from(from).map_err(invalid)?,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: words.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: KVM reads one bit for each of `num_pages` pages, rounded up to whole
    // words: exactly `words`, as was checked. It writes nothing there.
    let result = unsafe { libc::ioctl(vm.as_raw_fd(), CLEAR_DIRTY_LOG, &raw const log) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
