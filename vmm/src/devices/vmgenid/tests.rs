//! Tests of the VM generation id.

use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::bus::layout::{GED_GSI, GENERATION_ID};
use crate::bus::{Effects, Lines};
use crate::memory::{GuestRam, PAGE_SIZE};
use crate::virtio::testing::ram;

fn page(ram: &GuestRam) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    ram.read_slice(&mut page, GuestAddress(GENERATION_ID))
        .unwrap();
    page
}

#[test]
fn every_id_is_new_and_is_told() {
    let ram = ram();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..100 {
        let effects = renew(&ram).unwrap();
        let told = Effects {
            interrupts: Lines::one(GED_GSI),
            ..Effects::NONE
        };
        assert_eq!(effects, told);
        let page = page(&ram);
        assert!(seen.insert(page[..ID_LEN].to_vec()), "an id came twice");
        assert_eq!(page[ID_LEN..], [0; PAGE_SIZE - ID_LEN], "only the id");
    }
}

#[test]
fn a_reset_learns_which_page_was_written() {
    let ram = ram();
    let _ = renew(&ram).unwrap();
    let region = ram.find_region(GuestAddress(GENERATION_ID)).unwrap();
    let dirty: Vec<usize> = (0..256)
        .filter(|page| region.bitmap().dirty_at(page * PAGE_SIZE))
        .collect();
    assert_eq!(dirty, [usize::try_from(GENERATION_ID).unwrap() / PAGE_SIZE]);
}

#[test]
fn a_guest_without_that_memory_does_not_run() {
    let tiny = GuestRam::from_ranges(&[(GuestAddress(0), PAGE_SIZE)]).unwrap();
    assert!(matches!(renew(&tiny), Err(RenewError::Memory(_))));
}
