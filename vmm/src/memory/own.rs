//! Which pages of a private mapping are the process's own: those that it, or KVM for its
//! guest, wrote since it was mapped. In a private mapping of a file, a page that was
//! written is an anonymous one, and no other is (kernel document
//! `admin-guide/mm/pagemap.rst`).
//!
//! So KVM need not track the writes of a machine's first life. Without dirty tracking it
//! maps a huge page of the file at once, and no write is a fault that only takes note.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::pages::BITS;
use super::{PAGE_SIZE, PageSet};

/// A page's entry: it is in memory, it was swapped out, it belongs to a file.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;

/// Bytes of an entry.
const ENTRY: usize = 8;
/// Entries that are read in one go: those of 32 MiB.
const BATCH: usize = 8192;
const _: () = assert!(BATCH.is_multiple_of(BITS));

/// A process's `/proc/PID/pagemap`; its own is opened before it enters its jail.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// The own one; needs `/proc`.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(Self)
    }

    /// Another process's; needs the privilege to trace it.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(Self)
    }

    /// Adds those of `pages` pages from `address` on to `into`, as pages of `slot`, that
    /// are the process's own.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn own_pages(
        &self,
        address: u64,
        pages: usize,
        slot: u16,
        into: &mut PageSet,
    ) -> io::Result<()> {
        let number = |n: usize| u64::try_from(n).map_err(io::Error::other);
        let start = address / number(PAGE_SIZE)?;
        let mut bytes = vec![0; BATCH.min(pages) * ENTRY];
        for first in (0..pages).step_by(BATCH) {
            let some = &mut bytes[..BATCH.min(pages - first) * ENTRY];
            let at = (start + number(first)?) * number(ENTRY)?;
            self.0.read_exact_at(some, at)?;
            let (entries, _) = some.as_chunks::<ENTRY>();
            for (index, entries) in (first / BITS..).zip(entries.chunks(BITS)) {
                into.insert_word(slot, index, own_of(entries));
            }
        }
        Ok(())
    }
}

/// One bit for each entry, set where the page is the process's own.
fn own_of(entries: &[[u8; ENTRY]]) -> u64 {
    let bits = (0..).zip(entries).map(|(bit, entry)| {
        let own = is_own(u64::from_ne_bytes(*entry));
        u64::from(own) << bit
    });
    bits.fold(0, |word, bit| word | bit)
}

/// Whether an entry is of an anonymous page.
#[must_use]
pub const fn is_own(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & OF_A_FILE == 0
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::sys::mapping::{Reservation, Sharing};
    use crate::sys::memfd;

    #[test]
    fn a_page_is_own_exactly_when_it_was_written() {
        const PAGES: usize = BATCH + 700;
        let file = memfd::create("own", (PAGES * PAGE_SIZE) as u64).unwrap();
        for page in [0, 7, BATCH] {
            rustix::io::pwrite(&file, b"data", (page * PAGE_SIZE) as u64).unwrap();
        }
        let memory = Reservation::new(PAGES * PAGE_SIZE).unwrap();
        memory.map(file.as_fd(), 0, Sharing::Private).unwrap();
        let region = memory.region(GuestAddress(0)).unwrap();
        let ram = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        let at = |page: usize| GuestAddress((page * PAGE_SIZE) as u64);
        let pagemap = Pagemap::open().unwrap();
        let own = || {
            let mut set = PageSet::new([PAGES]);
            let (address, _) = memory.range().unwrap();
            pagemap.own_pages(address, PAGES, 0, &mut set).unwrap();
            let mut own = Vec::new();
            set.each_run(|_, run| {
                own.extend(run);
                Ok::<_, io::Error>(())
            })
            .unwrap();
            own
        };
        // Read: data, a hole.
        for page in [0, 3, BATCH] {
            ram.read_obj::<u8>(at(page)).unwrap();
        }
        assert_eq!(own(), [0; 0]);
        // Written: what was read before and what was not, data and holes.
        let written = [0, 7, 9, BATCH, PAGES - 1];
        for page in written {
            ram.write_obj(1_u8, at(page)).unwrap();
        }
        assert_eq!(own(), written);
    }

    #[test]
    fn a_page_that_was_swapped_out_is_still_own() {
        assert!(is_own(PRESENT) && is_own(SWAPPED));
        assert!(!is_own(0) && !is_own(PRESENT | OF_A_FILE) && !is_own(1 << 55));
    }
}
