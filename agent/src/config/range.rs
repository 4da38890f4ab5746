//! A number with the range that it must be in.

/// A key, its value, and the smallest and largest value that are allowed.
pub(super) struct Range {
    pub key: &'static str,
    pub value: u64,
    pub least: u64,
    pub most: u64,
}

pub(super) const fn range(key: &'static str, value: u64, least: u64, most: u64) -> Range {
    Range {
        key,
        value,
        least,
        most,
    }
}

pub(super) fn wide(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
