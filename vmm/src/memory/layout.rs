//! Where guest memory lies in the guest's address space.
//!
//! ```text
//!  0          640K  1M                      3G          4G
//!  ├───────────┼────┼───────────────────────┼───────────┼──────────────
//!  │ RAM       │ROM │ RAM                   │ devices   │ RAM, the rest
//! ```
//!
//! RAM is one file, cut in two where it would reach into the devices' gigabyte.

use super::PAGE_SIZE;
use crate::sys::spare;

/// Where the devices' address range begins, in bytes: 3 GiB.
pub const DEVICE_START: u64 = 3 << 30;

/// Where RAM goes on above the devices, in bytes: 4 GiB.
pub const HIGH_START: u64 = 4 << 30;

/// Smallest guest, in MiB.
pub const MIN_MIB: u32 = 64;

/// Largest guest, in MiB.
pub const MAX_MIB: u32 = 16 * 1024;

/// One stretch of RAM; its index is its memory slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Guest-physical address, in bytes.
    pub base: u64,
    /// Length, in bytes.
    pub length: u64,
    /// Where it begins in the memory file, in bytes.
    pub offset: u64,
}

impl Stretch {
    /// Where the place of a huge page begins that has this number in the memory file, in
    /// pages of this stretch; if all of it lies here.
    #[must_use]
    pub fn place(&self, number: u32) -> Option<usize> {
        let pages = |bytes: u64| Some(usize::try_from(bytes).ok()? / PAGE_SIZE);
        let first = usize::try_from(number).ok()?.checked_mul(spare::PAGES)?;
        let first = first.checked_sub(pages(self.offset)?)?;
        (first.checked_add(spare::PAGES)? <= pages(self.length)?).then_some(first)
    }
}

/// A guest memory size that cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{mib} MiB of guest memory cannot be built: it must be {MIN_MIB} to {MAX_MIB}")]
pub struct InvalidSize {
    /// What was asked for, in MiB.
    pub mib: u32,
}

/// Cuts `mib` MiB of RAM into stretches.
///
/// # Errors
/// When the size is out of range.
pub fn stretches(mib: u32) -> Result<Vec<Stretch>, InvalidSize> {
    if !(MIN_MIB..=MAX_MIB).contains(&mib) {
        return Err(InvalidSize { mib });
    }
    let total = u64::from(mib) << 20;
    let low = total.min(DEVICE_START);
    let mut list = vec![Stretch {
        base: 0,
        length: low,
        offset: 0,
    }];
    if total > low {
        list.push(Stretch {
            base: HIGH_START,
            length: total - low,
            offset: low,
        });
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_guest_is_one_stretch() {
        let list = stretches(128).unwrap();
        assert_eq!(
            list,
            [Stretch {
                base: 0,
                length: 128 << 20,
                offset: 0
            }]
        );
    }

    #[test]
    fn a_large_guest_leaves_the_devices_their_gigabyte() {
        let list = stretches(4096).unwrap();
        assert_eq!(
            list[0],
            Stretch {
                base: 0,
                length: DEVICE_START,
                offset: 0
            }
        );
        let high = Stretch {
            base: HIGH_START,
            length: 1 << 30,
            offset: DEVICE_START,
        };
        assert_eq!(list[1], high);
    }

    #[test]
    fn the_place_of_a_huge_page_lies_wholly_in_one_stretch_or_nowhere() {
        // 1,536 places below the devices, above them one and a half.
        let list = stretches(3075).unwrap();
        let place = |number| [0, 1].map(|at: usize| list[at].place(number));
        assert_eq!(place(0), [Some(0), None]);
        assert_eq!(place(1535), [Some(1535 * 512), None]);
        assert_eq!(place(1536), [None, Some(0)]);
        assert_eq!(place(1537), [None, None]);
        assert_eq!(place(u32::MAX), [None, None]);
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert_eq!(stretches(63), Err(InvalidSize { mib: 63 }));
        assert!(stretches(MAX_MIB + 1).is_err());
    }
}
