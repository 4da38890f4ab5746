//! A huge page that is prepared while it is not known yet what it will hold.
//!
//! ```text
//!  new ─► one huge page of zeroes ─┬─ take_place ─► guest memory, which keeps its addresses
//!                                  └─ drop ───────► the host's again
//! ```

use std::io;
use std::mem;
use std::ptr;

use super::copy;
use super::mapping::Reservation;
use super::memfd::{HUGE_PAGE, MADV_COLLAPSE};
use crate::memory::PAGE_SIZE;

/// Pages of a huge page.
pub const PAGES: usize = HUGE_PAGE / PAGE_SIZE;

/// One huge page of anonymous memory that belongs to nothing yet.
#[derive(Debug)]
pub struct Spare {
    address: usize,
}

impl Spare {
    /// Makes one; no setting of the host is asked for.
    ///
    /// # Errors
    /// What the kernel reports, for example where it has no huge pages.
    pub fn new() -> io::Result<Self> {
        let spare = Self::reserve()?;
        let place = ptr::with_exposed_provenance_mut(spare.address);
        // The kernel puts a huge page together where there is a page; the others become zeroes.
        // SAFETY: both calls are about the mapping that was just made and that nobody else
        // knows. They put memory under it and change how that lies, not what it holds.
        let done = unsafe {
            match libc::madvise(place, PAGE_SIZE, libc::MADV_POPULATE_WRITE) {
                0 => libc::madvise(place, HUGE_PAGE, MADV_COLLAPSE),
                failed => failed,
            }
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(spare)
    }

    /// A mapping in the place of a huge page, with nothing under it.
    fn reserve() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // Twice the length has a huge page's place in it.
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no
        // existing memory.
        let room = unsafe { libc::mmap(ptr::null_mut(), 2 * HUGE_PAGE, access, flags, -1, 0) };
        if room == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = room.expose_provenance();
        let address = start.next_multiple_of(HUGE_PAGE);
        let (end, before) = (address + HUGE_PAGE, address - start);
        // SAFETY: what lies before and behind the place are parts of the mapping that was just
        // made and that nobody else knows. That one of them is empty, which the kernel refuses,
        // changes nothing.
        unsafe {
            libc::munmap(room, before);
            libc::munmap(ptr::with_exposed_provenance_mut(end), HUGE_PAGE - before);
        }
        Ok(Self { address })
    }

    /// Takes the place of [`PAGES`] pages of `memory`, from page `first` on, and holds what
    /// they held. `memory` is a private mapping, and the guest must be stopped: what it wrote
    /// meanwhile would be lost.
    ///
    /// # Errors
    /// `InvalidInput` when `memory` has no place of a huge page there. Else what the kernel
    /// reports; then a part of `memory` may be gone, and nothing may use it any more.
    pub fn take_place(self, memory: &Reservation, first: usize) -> io::Result<()> {
        let place = memory.page(first);
        let place = place.filter(|place| place.addr().is_multiple_of(HUGE_PAGE));
        let last = first.checked_add(PAGES - 1);
        let (Some(place), Some(_)) = (place, last.and_then(|last| memory.page(last))) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let own = ptr::with_exposed_provenance_mut::<u8>(self.address);
        // SAFETY: both are the start of so many mapped pages: the last one of the place is in
        // the reservation, too, which is contiguous and never unmapped, and `own` has exactly
        // as many, which only this value knows, so the two do not overlap. No Rust reference
        // to either exists. The guest, who alone writes those of the place, is stopped.
        unsafe { copy::pages(place, own, PAGES) };
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the mapping at `own` is this value's, of this length, and nothing uses its
        // old address afterwards. What it replaces lies wholly in the reservation, into which
        // only raw pointers lead (KVM's slots, vm-memory's volatile accessors), and those find
        // the same bytes at the same addresses, readable and writable as before.
        let moved = unsafe {
            let place = place.cast::<libc::c_void>();
            libc::mremap(own.cast(), HUGE_PAGE, HUGE_PAGE, flags, place)
        };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // From now on a part of the reservation, which stays.
        mem::forget(self);
        Ok(())
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's alone, and no pointer into it outlives a call
        // of its methods.
        unsafe {
            libc::munmap(ptr::with_exposed_provenance_mut(self.address), HUGE_PAGE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::{AsFd as _, OwnedFd};

    use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::sys::mapping::{BaseView, Sharing};
    use crate::sys::memfd;

    const PAGE: u64 = PAGE_SIZE as u64;

    /// Three places and one page, a private mapping of a file whose pages begin with their
    /// number.
    fn numbered() -> (OwnedFd, Reservation) {
        let pages = 3 * PAGES + 1;
        let file = memfd::create("numbered", (pages * PAGE_SIZE) as u64).unwrap();
        for page in 0..pages as u64 {
            rustix::io::pwrite(&file, &page.to_le_bytes(), page * PAGE).unwrap();
        }
        let memory = Reservation::new(pages * PAGE_SIZE).unwrap();
        memory.map(file.as_fd(), 0, Sharing::Private).unwrap();
        (file, memory)
    }

    /// Huge pages of the mapping at an address, in KiB.
    fn huge_at(address: usize) -> Option<String> {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let begin = format!("{address:x}-");
        let of_it = maps.lines().skip_while(|line| !line.starts_with(&begin));
        let mut fields = of_it.take_while(|line| !line.starts_with("VmFlags"));
        let huge = fields.find_map(|line| line.strip_prefix("AnonHugePages:"));
        huge.map(|size| size.trim().to_owned())
    }

    #[test]
    fn a_spare_that_takes_a_place_holds_what_was_there_and_leaves_the_file_alone() {
        let (file, memory) = numbered();
        let base = BaseView::new(file.as_fd(), 0, memory.len()).unwrap();
        let region = memory.region(GuestAddress(0)).unwrap();
        let ram = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        Spare::new().unwrap().take_place(&memory, PAGES).unwrap();
        let (address, _) = memory.range().unwrap();
        let place = usize::try_from(address).unwrap() + HUGE_PAGE;
        assert_eq!(huge_at(place).as_deref(), Some("2048 kB"));
        assert!((0..=3 * PAGES).all(|page| base.page_equals(&memory, page).unwrap()));
        let written = PAGES + 9;
        let at = GuestAddress((written * PAGE_SIZE) as u64);
        assert_eq!(ram.read_obj::<usize>(at).unwrap(), written);
        ram.write_obj(usize::MAX, at).unwrap();
        assert!(!base.page_equals(&memory, written).unwrap());
        base.copy_to(&memory, written..written + 1).unwrap();
        assert_eq!(ram.read_obj::<usize>(at).unwrap(), written);
    }

    #[test]
    fn a_spare_takes_no_other_place_than_that_of_a_huge_page() {
        let (_file, memory) = numbered();
        for first in [1, PAGES - 1, 3 * PAGES, 4 * PAGES, usize::MAX] {
            let refused = Spare::new().unwrap().take_place(&memory, first);
            let kind = refused.unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::InvalidInput, "{first}");
        }
    }

    #[test]
    fn a_spare_that_is_not_used_is_given_back() {
        let spare = Spare::new().unwrap();
        let address = spare.address;
        assert!(is_mapped(address));
        drop(spare);
        assert!(!is_mapped(address));
    }

    fn is_mapped(address: usize) -> bool {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| {
            let (start, rest) = line.split_once('-').unwrap();
            let (end, _) = rest.split_once(' ').unwrap();
            let number = |text| usize::from_str_radix(text, 16).unwrap();
            (number(start)..number(end)).contains(&address)
        })
    }
}
