//! Mappings of guest memory.
//!
//! A [`Reservation`] is a range of addresses that a machine's memory slots point
//! to from the start; what lies under it is put there later with `MAP_FIXED`, and a
//! [`Spare`](super::spare::Spare) may take a place in it. A [`BaseView`] is the
//! read-only view of a snapshot's memfd that a reset copies from. Both stay mapped
//! until the process ends: KVM's memory slots, device code and vm-memory's regions
//! all hold addresses in them.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use vm_memory::GuestAddress;
use vm_memory::GuestRegionMmap;
use vm_memory::bitmap::NewBitmap as _;
use vm_memory::mmap::MmapRegionBuilder;

use super::copy;
use super::memfd::{self, HUGE_PAGE};
use super::uffd::Uffd;
use crate::memory::{DeviceWrites, PAGE_SIZE};

/// A range of the process's addresses that belongs to guest memory for as long
/// as the process lives.
#[derive(Debug)]
pub struct Reservation {
    address: usize,
    length: usize,
}

/// How a file is put under a [`Reservation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// The guest's writes go to the file.
    Shared,
    /// A page that the guest writes becomes the machine's own.
    Private,
}

impl Reservation {
    /// Reserves `length` bytes (a multiple of the page size) of address space;
    /// an access before [`Self::map`] is a fault.
    ///
    /// # Errors
    /// `InvalidInput` for an odd length, else what `mmap(2)` reports.
    pub fn new(length: usize) -> io::Result<Self> {
        if length == 0 || !length.is_multiple_of(PAGE_SIZE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let room = length
            .checked_add(HUGE_PAGE)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice
        // touches no existing memory.
        let address = unsafe { libc::mmap(ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // A huge page of a file can only be mapped as one where both begin together.
            address: address.expose_provenance().next_multiple_of(HUGE_PAGE),
            length,
        })
    }

    /// Where it begins, and how long it is, in bytes.
    ///
    /// # Errors
    /// Never on a 64-bit host.
    pub fn range(&self) -> io::Result<(u64, u64)> {
        let number = |n| u64::try_from(n).map_err(io::Error::other);
        Ok((number(self.address)?, number(self.length)?))
    }

    /// Its length, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Never: a reservation has at least one page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Puts `file` from `offset` under the whole range.
    ///
    /// # Errors
    /// What `mmap(2)` reports.
    pub fn map(&self, file: BorrowedFd<'_>, offset: u64, sharing: Sharing) -> io::Result<()> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = libc::MAP_FIXED
            | libc::MAP_NORESERVE
            | match sharing {
                Sharing::Shared => libc::MAP_SHARED,
                Sharing::Private => libc::MAP_PRIVATE,
            };
        // SAFETY: MAP_FIXED replaces exactly the range that `new` reserved and
        // that nothing else ever unmaps. Only raw pointers lead into it (KVM's
        // slots, vm-memory's volatile accessors), so no Rust reference sees the
        // bytes change.
        let mapped = unsafe {
            libc::mmap(
                ptr::with_exposed_provenance_mut(self.address),
                self.length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The range as a region of guest memory at `base`, with a dirty bitmap for
    /// the devices' writes.
    ///
    /// # Errors
    /// `InvalidInput` when vm-memory does not accept the geometry.
    pub fn region(&self, base: GuestAddress) -> io::Result<GuestRegionMmap<DeviceWrites>> {
        let bitmap = DeviceWrites::with_len(self.length);
        let builder = MmapRegionBuilder::new_with_bitmap(self.length, bitmap)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_NORESERVE | libc::MAP_PRIVATE);
        // SAFETY: the pointer is the start of a mapping of `length` bytes that is
        // never unmapped, so the region stays valid whatever outlives what. It is
        // used only once a file lies under it; before, an access is a clean fault.
        let builder = unsafe {
            builder.with_raw_mmap_pointer(ptr::with_exposed_provenance_mut(self.address))
        };
        let region = builder.build().map_err(io::Error::other)?;
        GuestRegionMmap::new(region, base).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Registers the range with `uffd` while `copy` runs, so that missing pages can be
    /// copied to. Whoever faults meanwhile waits.
    ///
    /// # Errors
    /// What the kernel or `copy` reports.
    pub fn with_missing(
        &self,
        uffd: &Uffd,
        copy: impl FnOnce(&Missing<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (address, length) = self.range()?;
        uffd.register_missing(address, length)?;
        let copied = copy(&Missing { memory: self, uffd });
        uffd.unregister(address, length)?;
        copied
    }

    /// Whether each page from `first` on is present: mapped in this process, or in
    /// the file under it (`mincore(2)`). One byte each, whose lowest bit counts.
    ///
    /// # Errors
    /// `InvalidInput` when there are no such pages, else what `mincore(2)` reports.
    pub fn present(&self, first: usize, pages: &mut [u8]) -> io::Result<()> {
        let last = pages
            .len()
            .checked_sub(1)
            .and_then(|n| n.checked_add(first));
        let (Some(from), Some(_)) = (self.page(first), last.and_then(|last| self.page(last)))
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: the range lies within the reservation, which is never unmapped; the
        // call reads nothing of it and writes one byte for each page to `pages`.
        let result =
            unsafe { libc::mincore(from.cast(), pages.len() * PAGE_SIZE, pages.as_mut_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Where a page of it begins.
    pub(super) fn page(&self, index: usize) -> Option<*mut u8> {
        let offset = index.checked_mul(PAGE_SIZE)?;
        (offset < self.length).then(|| ptr::with_exposed_provenance_mut(self.address + offset))
    }
}

/// A [`Reservation`] whose missing pages can be copied to.
#[derive(Debug)]
pub struct Missing<'a> {
    memory: &'a Reservation,
    uffd: &'a Uffd,
}

/// A read-only view of the memory file that a [`Reservation`] is a private
/// mapping of, page for page.
#[derive(Debug)]
pub struct BaseView {
    address: usize,
    length: usize,
    file: OwnedFd,
    offset: u64,
}

impl BaseView {
    /// Maps the first `pages` pages of `file`, read-only and shared.
    ///
    /// # Errors
    /// `UnexpectedEof` when it has fewer, else what `mmap(2)` reports.
    pub fn of_pages(file: BorrowedFd<'_>, pages: usize) -> io::Result<Self> {
        let length = pages.checked_mul(PAGE_SIZE);
        let length = length.ok_or(io::ErrorKind::InvalidInput)?;
        let there = usize::try_from(rustix::fs::fstat(file)?.st_size);
        if there.map_err(io::Error::other)? < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Self::new(file, 0, length)
    }

    /// Maps `length` bytes of `file` from `offset`, read-only and shared.
    ///
    /// # Errors
    /// What `mmap(2)` reports.
    pub fn new(file: BorrowedFd<'_>, offset: u64, length: usize) -> io::Result<Self> {
        let at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let own = file.try_clone_to_owned()?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no
        // existing memory.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                at,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            address: address.expose_provenance(),
            length,
            file: own,
            offset,
        })
    }

    /// The next pages from `index` on that the file has; the others are holes.
    ///
    /// # Errors
    /// When the file cannot tell.
    pub fn data_after(&self, index: usize) -> io::Result<Option<Range<usize>>> {
        let number = |n: usize| u64::try_from(n).map_err(io::Error::other);
        let page = |n: u64| usize::try_from(n).map_err(io::Error::other);
        let (size, length) = (number(PAGE_SIZE)?, number(self.length)?);
        let at = self.offset + number(index)?.saturating_mul(size);
        let data = memfd::data_after(&self.file, at, self.offset + length)?;
        data.map(|data| {
            let (start, end) = (data.start - self.offset, data.end - self.offset);
            Ok(page(start / size)?..page(end.div_ceil(size))?)
        })
        .transpose()
    }

    /// Whether the file has page `index`.
    ///
    /// # Errors
    /// When the file cannot tell.
    pub fn has(&self, index: usize) -> io::Result<bool> {
        let data = self.data_after(index)?;
        Ok(data.is_some_and(|data| data.start == index))
    }

    fn page(&self, index: usize) -> Option<*const u8> {
        self.range_of(index, 1)
    }

    /// The first of `pages` pages that are all here.
    fn range_of(&self, index: usize, pages: usize) -> Option<*const u8> {
        let end = index.checked_add(pages)?.checked_mul(PAGE_SIZE)?;
        (end <= self.length).then(|| ptr::with_exposed_provenance(self.address + index * PAGE_SIZE))
    }

    /// Copies neighbouring pages over the same pages of `memory`. The guest must be
    /// stopped, and the pages must have been written by it before: only then is it
    /// certain that the file holds them.
    ///
    /// # Errors
    /// `InvalidInput` when there are no such pages.
    pub fn copy_to(&self, memory: &Reservation, pages: Range<usize>) -> io::Result<()> {
        let end = pages.end.checked_mul(PAGE_SIZE);
        let there = end.is_some_and(|end| end <= self.length && end <= memory.length);
        if !there || pages.start > pages.end {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let offset = pages.start * PAGE_SIZE;
        let from = ptr::with_exposed_provenance(self.address + offset);
        let to = ptr::with_exposed_provenance_mut(memory.address + offset);
        // SAFETY: both pointers are at the start of a page, and the end of the last page is
        // in both mappings, which are contiguous and never removed, so all pages in between
        // are mapped; the two mappings do not overlap. No Rust reference to either exists.
        // The guest, who alone writes them, is stopped.
        unsafe { copy::pages(from, to, pages.len()) };
        Ok(())
    }

    /// Copies neighbouring pages, from page `first` on, to `pages` of `to`, where those are
    /// missing; they are the process's own then.
    ///
    /// # Errors
    /// `InvalidInput` when there are no such pages, else what the kernel reports.
    pub fn copy_missing(
        &self,
        first: usize,
        to: &Missing<'_>,
        pages: Range<usize>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < pages.len() {
            let (at, left) = (pages.start + done, pages.len() - done);
            let source = first.checked_add(done);
            let source = source.and_then(|source| self.range_of(source, left));
            let last = to.memory.page(pages.end - 1).is_some();
            let (Some(from), Some(into), true) = (source, to.memory.page(at), last) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            let number = |n: usize| u64::try_from(n).map_err(io::Error::other);
            let len = number(left * PAGE_SIZE)?;
            let (from, into) = (from.expose_provenance(), into.expose_provenance());
            // SAFETY: both are the start of a whole mapped page, and the last of them is in
            // its mapping, too; none of the two mappings is ever removed, and only raw
            // pointers lead into the one that is copied to.
            let copied = unsafe { to.uffd.copy(number(into)?, number(from)?, len)? };
            let copied = usize::try_from(copied).map_err(io::Error::other)? / PAGE_SIZE;
            // The next one is not missing.
            done += copied + 1;
        }
        Ok(())
    }

    /// Whether page `index` is the same here and in `memory`. The page of
    /// `memory` is read first: if the file lacks it, that fault has it filled in.
    ///
    /// # Errors
    /// `InvalidInput` when there is no such page.
    pub fn page_equals(&self, memory: &Reservation, index: usize) -> io::Result<bool> {
        let (Some(base), Some(own)) = (self.page(index), memory.page(index)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: `own` is the start of a mapped page; a volatile read of its
        // first byte only makes the page present.
        unsafe { ptr::read_volatile(own) };
        // SAFETY: both pointers are the start of a whole mapped page, as in
        // `copy_to`; memcmp only reads.
        Ok(unsafe { libc::memcmp(base.cast(), own.cast(), PAGE_SIZE) } == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestMemoryMmap};

    use super::*;

    fn file_of_pages(fill: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        for (index, byte) in fill.iter().enumerate() {
            let at = u64::try_from(index * PAGE_SIZE).unwrap();
            file.write_all_at(&[*byte; PAGE_SIZE], at).unwrap();
        }
        file
    }

    #[test]
    fn a_private_page_is_put_back_from_the_base() {
        let file = file_of_pages(&[1, 2, 3]);
        let memory = Reservation::new(3 * PAGE_SIZE).unwrap();
        memory.map(file.as_fd(), 0, Sharing::Private).unwrap();
        let base = BaseView::new(file.as_fd(), 0, 3 * PAGE_SIZE).unwrap();
        let ram =
            GuestMemoryMmap::from_regions(vec![memory.region(GuestAddress(0)).unwrap()]).unwrap();

        let at = GuestAddress(u64::try_from(PAGE_SIZE).unwrap() + 5);
        ram.write_obj(0xff_u8, at).unwrap();
        assert!(!base.page_equals(&memory, 1).unwrap());
        assert!(base.page_equals(&memory, 2).unwrap());
        base.copy_to(&memory, 1..2).unwrap();
        assert!(base.page_equals(&memory, 1).unwrap());
        assert_eq!(ram.read_obj::<u8>(at).unwrap(), 2);
        assert!(base.copy_to(&memory, 2..4).is_err());
    }

    #[test]
    fn a_page_of_a_hole_is_present_once_it_is_written() {
        let memfd = memfd::create("hole", 4 * PAGE_SIZE as u64).unwrap();
        let memory = Reservation::new(4 * PAGE_SIZE).unwrap();
        memory.map(memfd.as_fd(), 0, Sharing::Private).unwrap();
        let ram =
            GuestMemoryMmap::from_regions(vec![memory.region(GuestAddress(0)).unwrap()]).unwrap();
        let present = || {
            let mut pages = [0xff; 4];
            memory.present(0, &mut pages).unwrap();
            pages.map(|page| page & 1)
        };
        assert_eq!(present(), [0; 4]);
        let at = GuestAddress(2 * PAGE_SIZE as u64);
        ram.write_obj(1_u8, at).unwrap();
        assert_eq!(present(), [0, 0, 1, 0]);
        assert!(memory.present(1, &mut [0; 4]).is_err());
        assert!(memory.present(0, &mut []).is_err());
    }

    #[test]
    fn an_odd_length_is_refused() {
        assert!(Reservation::new(0).is_err());
        assert!(Reservation::new(PAGE_SIZE + 1).is_err());
    }
}
