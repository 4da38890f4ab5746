//! KVM's dirty ring: one per vCPU, shared with the kernel (kernel document
//! `virt/kvm/api.rst`, `KVM_CAP_DIRTY_LOG_RING_ACQ_REL`).
//!
//! ```text
//!   entry:  free ──(kernel: page written)──► DIRTY ──(we: collected)──► RESET ──(kernel: write-protected)──► free
//! ```

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING_ACQ_REL, kvm_dirty_gfn, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::memory::PAGE_SIZE;

/// Entries of one ring. The kernel stops the vCPU when it is nearly full.
pub const ENTRIES: u32 = 16 * 1024;

const ENTRY_SIZE: usize = size_of::<kvm_dirty_gfn>();
const _: () = assert!(ENTRY_SIZE == 16);

const DIRTY: u32 = 1;
const RESET: u32 = 2;

/// Where the ring lies in the vCPU's descriptor (`KVM_DIRTY_LOG_PAGE_OFFSET`).
const MAP_OFFSET: libc::off_t = 64 * 4096;

/// `KVM_RESET_DIRTY_RINGS`: `_IO(KVMIO, 0xc7)`.
const RESET_DIRTY_RINGS: libc::Ioctl = 0xaec7;

/// Turns the rings on; before the first vCPU is made.
///
/// # Errors
/// What KVM reports, for example that it has no dirty ring.
pub fn enable(vm: &VmFd) -> io::Result<()> {
    let bytes = u64::from(ENTRIES) * 16;
    let cap = kvm_enable_cap {
        cap: KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
        args: [bytes, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap).map_err(io::Error::from)
}

/// Gives collected entries back to the kernel, which write-protects their pages
/// again. Returns how many there were.
///
/// # Errors
/// What KVM reports.
pub fn reset_all(vm: &VmFd) -> io::Result<usize> {
    // SAFETY: the request takes no argument and works on the rings of this VM
    // only.
    let count = unsafe { libc::ioctl(vm.as_raw_fd(), RESET_DIRTY_RINGS) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// A page that was written: the memory slot and the page's index in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirtyPage {
    /// Memory slot.
    pub slot: u16,
    /// Index of the page in the slot.
    pub page: usize,
}

/// The ring of one vCPU, mapped.
#[derive(Debug)]
pub struct DirtyRing {
    entries: *mut kvm_dirty_gfn,
    next: u32,
}

// SAFETY: the ring is plain shared memory whose entries are handed over by
// atomic flags; `&mut self` keeps collection to one thread at a time, whichever
// it is.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of `vcpu`.
    ///
    /// # Errors
    /// What `mmap(2)` reports.
    pub fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        let length = usize::try_from(ENTRIES).unwrap_or(0) * ENTRY_SIZE;
        debug_assert!(length.is_multiple_of(PAGE_SIZE));
        // SAFETY: a new shared mapping of the vCPU's own ring at an address of
        // the kernel's choice.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                MAP_OFFSET,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            entries: mapped.cast(),
            next: 0,
        })
    }

    /// Takes the next written page, if there is one. Its entry goes back to the
    /// kernel with [`reset_all`].
    pub fn collect(&mut self) -> Option<DirtyPage> {
        let index = usize::try_from(self.next % ENTRIES).ok()?;
        // SAFETY: `index` is below `ENTRIES`, the length of the mapping in
        // entries, and the mapping lives as long as the process.
        let entry = unsafe { self.entries.add(index) };
        // SAFETY: `flags` is a naturally aligned u32 in shared memory that both
        // sides access atomically: this is the protocol's hand-over.
        let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
        if flags.load(Ordering::Acquire) & DIRTY == 0 {
            return None;
        }
        // SAFETY: an entry that is DIRTY belongs to us until it is marked RESET;
        // the kernel wrote both fields before the flag that was just acquired.
        let (slot, offset) = unsafe { ((*entry).slot, (*entry).offset) };
        flags.store(RESET, Ordering::Release);
        self.next = self.next.wrapping_add(1);
        // The upper half of the slot is the address space, which is always 0
        // outside system management mode.
        let slot = u16::try_from(slot & 0xffff).ok()?;
        Some(DirtyPage {
            slot,
            page: usize::try_from(offset).ok()?,
        })
    }
}
