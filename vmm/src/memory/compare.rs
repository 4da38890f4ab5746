//! Which pages of a machine's memory differ from its snapshot.
//!
//! What the memory file has is compared byte by byte. What it does not have (yet)
//! cannot have been given to any machine: the first access to such a page makes a
//! fault, and the page comes into the file before the machine goes on. So a hole is
//! equal unless the machine has a page there all the same, which is wrong whatever
//! it holds. Such pages are looked for and never read: reading would fetch each page
//! of a snapshot of any size (a guest of 16 GiB that uses little of it could not be
//! compared in a bounded time), and reading the file's hole would fill it with
//! zeroes for every other machine.

use std::io;
use std::ops::Range;

use super::PAGE_SIZE;
use crate::sys::mapping::{BaseView, Reservation};

/// Pages of a hole that are looked at in one go.
const STEP: usize = 64 * 1024;

/// Indices of pages that differ, at most `limit`; the guest is stopped.
pub(super) fn differing(
    memory: &Reservation,
    base: &BaseView,
    limit: usize,
) -> io::Result<Vec<usize>> {
    let pages = memory.len() / PAGE_SIZE;
    let mut found = Vec::new();
    let mut at = 0;
    while at < pages && found.len() < limit {
        let data = base.data_after(at)?.unwrap_or(pages..pages);
        for page in present(memory, at..data.start)? {
            // Unless another machine's fault has filled the hole meanwhile.
            if !base.has(page)? || !base.page_equals(memory, page)? {
                found.push(page);
            }
        }
        at = data.end;
        for page in data {
            if found.len() >= limit {
                break;
            }
            if !base.page_equals(memory, page)? {
                found.push(page);
            }
        }
    }
    found.truncate(limit);
    Ok(found)
}

/// The pages of a hole that are present all the same.
fn present(memory: &Reservation, hole: Range<usize>) -> io::Result<Vec<usize>> {
    let mut found = Vec::new();
    for first in hole.clone().step_by(STEP) {
        let mut bytes = vec![0; STEP.min(hole.end - first)];
        memory.present(first, &mut bytes)?;
        let pages = (first..).zip(&bytes);
        found.extend(
            pages
                .filter(|(_, byte)| **byte & 1 != 0)
                .map(|(page, _)| page),
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::fs::FallocateFlags;
    use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::sys::mapping::Sharing;
    use crate::sys::memfd;

    const PAGE: u64 = PAGE_SIZE as u64;

    #[test]
    fn differences_are_found_in_data_and_in_holes() {
        // Larger than one step; only two pages exist.
        let pages = 3 * STEP + 5;
        let length = pages * PAGE_SIZE;
        let file = memfd::create("sparse", length as u64).unwrap();
        for page in [1, 2 * STEP as u64] {
            rustix::io::pwrite(&file, b"data", page * PAGE).unwrap();
        }
        let memory = Reservation::new(length).unwrap();
        memory.map(file.as_fd(), 0, Sharing::Private).unwrap();
        let base = BaseView::new(file.as_fd(), 0, length).unwrap();
        let region = memory.region(GuestAddress(0)).unwrap();
        let ram = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        assert!(differing(&memory, &base, 10).unwrap().is_empty());
        // A page that is written with what it holds is the machine's own, and equal.
        ram.write_slice(b"data", GuestAddress(PAGE)).unwrap();
        assert!(differing(&memory, &base, 10).unwrap().is_empty());
        let changed = [1, STEP, 2 * STEP, pages - 1];
        for page in changed {
            ram.write_obj(7_u8, GuestAddress(page as u64 * PAGE + 9))
                .unwrap();
        }
        assert_eq!(differing(&memory, &base, 10).unwrap(), changed);
        assert_eq!(differing(&memory, &base, 2).unwrap(), changed[..2]);
        // A page that the file does not have is wrong even when it looks like the hole.
        ram.write_obj(0_u8, GuestAddress(3 * PAGE)).unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 3 * PAGE, PAGE).unwrap();
        assert_eq!(differing(&memory, &base, 10).unwrap()[..2], [1, 3]);
        // Looking at a hole does not fill it.
        let data = memfd::data_after(&file, 2 * PAGE, length as u64).unwrap();
        let next = STEP as u64 * PAGE;
        assert_eq!(data, Some(next..next + PAGE));
    }
}
