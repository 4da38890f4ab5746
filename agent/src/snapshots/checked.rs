//! A snapshot's memory files as a source of pages: what is read is what was checked.

use std::io;

use snapback_vmm::snapshot::layers::Layers;
use snapback_vmm::snapshot::sums::PageSums;

use crate::pager::{PAGE, PageSource};

/// A memory file, or a diff's on top of its bases', with the sums of its pages. A page that
/// has changed since the hashes were checked is an error, and never a page of zeroes.
#[derive(Debug)]
pub struct CheckedMemory {
    layers: Layers,
    sums: PageSums,
}

impl CheckedMemory {
    /// `sums` are of the same memory.
    #[must_use]
    pub const fn new(layers: Layers, sums: PageSums) -> Self {
        Self { layers, sums }
    }
}

impl PageSource for CheckedMemory {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        if !offset.is_multiple_of(PAGE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.layers.read_at(offset, bytes)?;
        let checked = self.sums.check(offset, bytes);
        checked.map_err(|damaged| io::Error::new(io::ErrorKind::InvalidData, damaged))
    }

    fn data_after(&self, offset: u64) -> io::Result<u64> {
        // Not where the files have holes now.
        Ok(self.sums.data_after(offset).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use std::sync::Arc;

    use snapback_vmm::snapshot::memory;

    use super::*;
    use crate::pager::{Completion, MemoryCache};

    const LEN: u64 = 1024 * PAGE;

    /// A memory with data in pages 3, 4 and 700, and its checked source.
    fn source() -> (File, CheckedMemory) {
        let (guest, file) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        guest.set_len(LEN).unwrap();
        for page in [3, 4, 700] {
            guest.write_all_at(&[9; 4096], page * PAGE).unwrap();
        }
        let written = memory::write(&guest, &file, LEN).unwrap();
        let layers = Layers::whole(file.try_clone().unwrap(), LEN).unwrap();
        let sums = memory::verify(&layers, &written.chunks).unwrap();
        (file, CheckedMemory::new(layers, sums))
    }

    #[test]
    fn a_page_that_changed_or_vanished_since_it_was_checked_is_no_page() {
        let (file, source) = source();
        let mut bytes = [0; 2 * 4096];
        source.read_at(3 * PAGE, &mut bytes).unwrap();
        file.write_all_at(&[8], 4 * PAGE + 77).unwrap();
        source.read_at(2 * PAGE, &mut bytes).unwrap();
        let error = source.read_at(3 * PAGE, &mut bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let words = error.to_string();
        assert_eq!(
            words,
            "the page at 0x4000 of the snapshot's memory is damaged"
        );
        // Cut, and as long as before: a hole.
        file.set_len(700 * PAGE).unwrap();
        let kind = source.read_at(700 * PAGE, &mut bytes).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::UnexpectedEof);
        file.set_len(LEN).unwrap();
        assert!(source.read_at(700 * PAGE, &mut bytes).is_err());
    }

    #[test]
    fn a_memory_whose_data_became_a_hole_is_never_complete() {
        let (file, source) = source();
        file.set_len(0).unwrap();
        file.set_len(LEN).unwrap();
        let cache = MemoryCache::cold(LEN, Box::new(source), PAGE).unwrap();
        let cache = Arc::new(cache);
        assert!(Completion::of(Arc::clone(&cache)).finish().is_err());
        assert!(!cache.is_complete());
    }
}
