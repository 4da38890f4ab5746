//! Copying whole pages by the widest registers that pay.
//!
//! A reset is mostly this. With 256 bits a page is 128 loads and 128 stores; registers of
//! 512 bits make older processors lower their clock for whoever runs next, so they are left
//! alone (Intel 64 and IA-32 Architectures Optimization Reference Manual, on the power management
//! of Skylake servers).

use std::arch::x86_64::{__m256i, _mm256_load_si256, _mm256_store_si256};
use std::ptr;

use crate::memory::PAGE_SIZE;

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

/// As [`pages`]. Everything is written out: taken through arrays or iterators, the registers
/// would be spilled to the stack.
///
/// # Safety
/// As [`pages`], on a processor with AVX.
#[target_feature(enable = "avx")]
#[expect(
    clippy::many_single_char_names,
    reason = "they are the sixteen registers"
)]
unsafe fn with_avx(from: *const u8, to: *mut u8, count: usize) {
    const STEP: usize = 16;
    const { assert!(PAGE_SIZE.is_multiple_of(STEP * size_of::<__m256i>())) };
    let (mut from, mut to) = (from.cast::<__m256i>(), to.cast::<__m256i>());
    for _ in 0..count * (PAGE_SIZE / size_of::<__m256i>() / STEP) {
        // SAFETY: the loop goes through the pages once, in steps that divide a page, so every
        // address is inside of them; it is aligned, because pages are and a register divides
        // them. After the last step the pointers are just behind the pages.
        unsafe {
            let a = _mm256_load_si256(from);
            let b = _mm256_load_si256(from.add(1));
            let c = _mm256_load_si256(from.add(2));
            let d = _mm256_load_si256(from.add(3));
            let e = _mm256_load_si256(from.add(4));
            let f = _mm256_load_si256(from.add(5));
            let g = _mm256_load_si256(from.add(6));
            let h = _mm256_load_si256(from.add(7));
            let i = _mm256_load_si256(from.add(8));
            let j = _mm256_load_si256(from.add(9));
            let k = _mm256_load_si256(from.add(10));
            let l = _mm256_load_si256(from.add(11));
            let m = _mm256_load_si256(from.add(12));
            let n = _mm256_load_si256(from.add(13));
            let o = _mm256_load_si256(from.add(14));
            let p = _mm256_load_si256(from.add(15));
            _mm256_store_si256(to, a);
            _mm256_store_si256(to.add(1), b);
            _mm256_store_si256(to.add(2), c);
            _mm256_store_si256(to.add(3), d);
            _mm256_store_si256(to.add(4), e);
            _mm256_store_si256(to.add(5), f);
            _mm256_store_si256(to.add(6), g);
            _mm256_store_si256(to.add(7), h);
            _mm256_store_si256(to.add(8), i);
            _mm256_store_si256(to.add(9), j);
            _mm256_store_si256(to.add(10), k);
            _mm256_store_si256(to.add(11), l);
            _mm256_store_si256(to.add(12), m);
            _mm256_store_si256(to.add(13), n);
            _mm256_store_si256(to.add(14), o);
            _mm256_store_si256(to.add(15), p);
            from = from.add(STEP);
            to = to.add(STEP);
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
