//! From samples to a row.

use std::time::Duration;

use serde_json::Value;

use super::{Params, Row};

/// Samples of one quantity.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    unit: &'static str,
    values: Vec<f64>,
}

impl Samples {
    /// No samples yet; `unit` is what the values will be in.
    #[must_use]
    pub const fn new(unit: &'static str) -> Self {
        let values = Vec::new();
        Self { unit, values }
    }

    /// Adds a value in the unit of these samples.
    pub fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The row: median, quartiles and 99th percentile. `None` without samples.
    #[must_use]
    pub fn row<'a>(
        &self,
        name: &str,
        params: impl IntoIterator<Item = (&'a str, Value)>,
    ) -> Option<Row> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let params: Params = params
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Some(Row {
            name: name.to_owned(),
            unit: self.unit.to_owned(),
            p50: percentile(&sorted, 50)?,
            p99: percentile(&sorted, 99)?,
            p25: percentile(&sorted, 25)?,
            p75: percentile(&sorted, 75)?,
            n: u64::try_from(sorted.len()).ok()?,
            params,
        })
    }
}

/// The percentile of sorted values by the nearest rank: the smallest value that at
/// least `percent` of 100 values do not exceed. Always a value that was measured;
/// with fewer than 100 values the 99th is the largest.
#[must_use]
pub fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = sorted.len().checked_mul(percent.min(100))?.div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// A duration, in milliseconds.
#[must_use]
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A count as a sample. Counts above 2³² become infinite: they are not counts of
/// anything measured here.
#[must_use]
pub fn whole(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up_to(n: u32) -> Vec<f64> {
        (1..=n).map(f64::from).collect()
    }

    #[test]
    fn percentiles_are_measured_values() {
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(percentile(&[3.0], 99), Some(3.0));
        assert_eq!(percentile(&up_to(2), 50), Some(1.0));
        assert_eq!(percentile(&up_to(20), 50), Some(10.0));
        assert_eq!(percentile(&up_to(20), 99), Some(20.0));
        assert_eq!(percentile(&up_to(100), 99), Some(99.0));
        assert_eq!(percentile(&up_to(200), 99), Some(198.0));
        assert_eq!(percentile(&up_to(5), 0), Some(1.0));
        assert_eq!(percentile(&up_to(5), 1000), Some(5.0));
    }

    #[test]
    fn samples_need_not_come_sorted() {
        let mut samples = Samples::new("ms");
        for value in [3.0, 1.0, 2.0] {
            samples.push(value);
        }
        let row = samples.row("a/b", [("size", Value::from(1))]).unwrap();
        assert_eq!((row.p50, row.p99, row.n), (2.0, 3.0, 3));
        assert_eq!(row.unit, "ms");
        assert_eq!(row.params["size"], 1);
    }

    #[test]
    fn units_are_what_they_say() {
        assert!((milliseconds(Duration::from_micros(1500)) - 1.5).abs() < 1e-12);
        assert_eq!(whole(512), 512.0);
        assert_eq!(whole(u64::MAX), f64::INFINITY);
    }
}
