//! Copying whole pages by the widest registers that pay.
//!
//! A reset is mostly this. With 256 bits a page is 128 loads and 128 stores; registers of
//! 512 bits make older processors lower their clock for whoever runs next, so they are left
//! alone (Intel 64 and IA-32 Architectures Optimization Reference Manual, on the power management
//! of Skylake servers).

use std::arch::x86_64::{__m256i, _mm256_load_si256, _mm256_setzero_si256, _mm256_store_si256};
use std::ptr;

use crate::memory::PAGE_SIZE;

/// Registers that are filled before the first of them is written.
const REGISTERS: usize = 8;
/// Bytes of a register.
const WIDTH: usize = size_of::<__m256i>();

/// Copies `count` neighbouring pages.
///
/// # Safety
/// Both pointers are the start of so many whole pages that are mapped and do not overlap, with
/// no Rust reference to any byte of either, and nobody else writes the pages at `from` or
/// accesses those at `to` meanwhile.
pub(super) unsafe fn pages(from: *const u8, to: *mut u8, count: usize) {
    if is_x86_feature_detected!("avx") {
        // SAFETY: the processor has AVX; the rest is what this function's caller promises.
        unsafe { with_avx(from, to, count) }
    } else {
        // SAFETY: the caller promises that both hold so many bytes and do not overlap.
        unsafe { ptr::copy_nonoverlapping(from, to, count * PAGE_SIZE) }
    }
}

/// As [`pages`].
///
/// # Safety
/// As [`pages`], on a processor with AVX.
#[target_feature(enable = "avx")]
unsafe fn with_avx(from: *const u8, to: *mut u8, count: usize) {
    const STEP: usize = REGISTERS * WIDTH;
    const { assert!(PAGE_SIZE.is_multiple_of(STEP)) };
    for step in 0..count * (PAGE_SIZE / STEP) {
        // SAFETY: `step` counts through the pages, so these are inside of both.
        let (from, to) = unsafe { (from.add(step * STEP), to.add(step * STEP)) };
        let (from, to) = (from.cast::<__m256i>(), to.cast::<__m256i>());
        let mut held = [_mm256_setzero_si256(); REGISTERS];
        for (nth, register) in held.iter_mut().enumerate() {
            // SAFETY: inside of the step, and aligned: pages are, and a register divides them.
            *register = unsafe { _mm256_load_si256(from.add(nth)) };
        }
        for (nth, register) in held.into_iter().enumerate() {
            // SAFETY: as above, in pages that the caller may write.
            unsafe { _mm256_store_si256(to.add(nth), register) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole pages, aligned as such.
    #[repr(C, align(4096))]
    #[derive(Clone)]
    struct Pages([u8; 4 * PAGE_SIZE]);

    fn pattern() -> Box<Pages> {
        let mut pages = Box::new(Pages([0; 4 * PAGE_SIZE]));
        for (at, byte) in pages.0.iter_mut().enumerate() {
            *byte = u8::try_from(at * 7 % 251).unwrap();
        }
        pages
    }

    type Copy = unsafe fn(*const u8, *mut u8, usize);

    fn copies_two_of_four(copy: Copy) {
        let from = pattern();
        let mut to = Box::new(Pages([0xee; 4 * PAGE_SIZE]));
        let (begin, end) = (PAGE_SIZE, 3 * PAGE_SIZE);
        let (source, target) = (from.0[begin..].as_ptr(), to.0[begin..].as_mut_ptr());
        // SAFETY: two pages begin there in each of the boxes, which nobody else knows.
        unsafe { copy(source, target, 2) };
        assert_eq!(to.0[begin..end], from.0[begin..end]);
        assert!(to.0[..begin].iter().all(|byte| *byte == 0xee));
        assert!(to.0[end..].iter().all(|byte| *byte == 0xee));
    }

    #[test]
    fn pages_are_copied_whole_and_their_neighbours_are_left_alone() {
        copies_two_of_four(pages);
        if is_x86_feature_detected!("avx") {
            copies_two_of_four(with_avx);
        }
    }

    #[test]
    fn no_page_is_no_access() {
        // SAFETY: of no page, no byte is accessed.
        unsafe { pages(ptr::dangling(), ptr::dangling_mut(), 0) };
    }
}
