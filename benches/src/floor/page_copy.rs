//! Copying pages.

use std::hint::black_box;
use std::time::Instant;

use crate::report::{Row, Samples};

/// A page, in bytes.
const PAGE: usize = 4096;
/// Pages that are copied: more than a processor's second-level cache holds.
const PAGES: usize = 8192;
/// Pages per sample: one alone is shorter than the clock can tell.
const BATCH: usize = 64;

/// Copying one page between two places that are not in the cache, in nanoseconds.
#[must_use]
pub fn page_copy() -> Option<Row> {
    let from = vec![1_u8; PAGE * PAGES];
    // Not zero: the allocator would leave the pages to be made while they are copied to.
    let mut to = vec![2_u8; PAGE * PAGES];
    let batch = u32::try_from(BATCH).ok()?;
    let mut samples = Samples::new("ns");
    let pairs = from
        .chunks_exact(PAGE * BATCH)
        .zip(to.chunks_exact_mut(PAGE * BATCH));
    for (from, to) in pairs {
        let begin = Instant::now();
        for (from, to) in from.chunks_exact(PAGE).zip(to.chunks_exact_mut(PAGE)) {
            to.copy_from_slice(black_box(from));
            black_box(to);
        }
        samples.push(begin.elapsed().as_secs_f64() * 1e9 / f64::from(batch));
    }
    samples.row("floor/page_copy", [])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_takes_time_to_copy() {
        let row = page_copy().unwrap();
        assert!(row.p50 > 0.0 && row.p50 <= row.p99);
        assert_eq!(row.n, 128);
    }
}
