//! Copying pages.

use std::os::fd::AsFd;
use std::time::Instant;

use snapback_vmm::sys::mapping::{BaseView, Reservation, Sharing};
use snapback_vmm::sys::memfd;

use super::error::{FloorError, step};
use crate::report::{Row, Samples};

/// A page, in bytes.
const PAGE: usize = 4096;
/// Pages that are copied: more than a processor's second-level cache holds.
const PAGES: usize = 8192;
/// Pages per sample: one alone is shorter than the clock can tell.
const BATCH: u8 = 64;

/// Copying one page back from a memfd to the private mapping of it, neither of them in the
/// cache, in nanoseconds: by the routine that a reset copies with, many neighbours at once.
///
/// # Errors
/// When there is no memory for it.
pub fn page_copy() -> Result<Option<Row>, FloorError> {
    let memory = Reservation::new(PAGE * PAGES).map_err(step("reserving memory"))?;
    let (_, length) = memory.range().map_err(step("reserving memory"))?;
    let file = memfd::create("floor", length).map_err(step("making a memfd"))?;
    memory
        .map(file.as_fd(), 0, Sharing::Private)
        .map_err(step("mapping a memfd"))?;
    let base = BaseView::new(file.as_fd(), 0, memory.len()).map_err(step("mapping a memfd"))?;
    let copy = |pages| {
        let copied = base.copy_to(&memory, pages);
        copied.map_err(step("copying pages"))
    };
    // Takes the faults of both.
    copy(0..PAGES)?;
    let mut samples = Samples::new("ns");
    for first in (0..PAGES).step_by(BATCH.into()) {
        let begin = Instant::now();
        copy(first..first + usize::from(BATCH))?;
        samples.push(begin.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH));
    }
    Ok(samples.row("floor/page_copy", []))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_takes_time_to_copy() {
        let row = page_copy().unwrap().unwrap();
        assert!(row.p50 > 0.0 && row.p50 <= row.p99);
        assert_eq!(row.n, 128);
    }
}
