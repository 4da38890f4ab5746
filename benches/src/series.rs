//! What requests showed, one by one.

use std::time::Duration;

use crate::facts::Record;
use crate::report::{Samples, milliseconds, whole};

/// One request in a microVM of its own.
#[derive(Debug, Clone)]
pub struct Sample {
    /// At the caller.
    pub latency: Duration,
    /// What the agent measured.
    pub record: Record,
}

impl Sample {
    /// What the caller waited, in nanoseconds.
    #[must_use]
    pub fn latency_ns(&self) -> u64 {
        u64::try_from(self.latency.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The requests of one setting.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// In no order.
    pub samples: Vec<Sample>,
    /// Huge pages that the host's memory files had when the series ended: how a snapshot's
    /// memory came to lie.
    pub huge_pages: Option<u64>,
}

impl Series {
    /// A duration of each request, in milliseconds.
    #[must_use]
    pub fn times(&self, ns: impl Fn(&Sample) -> u64) -> Samples {
        let mut samples = Samples::new("ms");
        for sample in &self.samples {
            samples.push(milliseconds(Duration::from_nanos(ns(sample))));
        }
        samples
    }

    /// A count of each request.
    #[must_use]
    pub fn counts(&self, unit: &'static str, count: impl Fn(&Sample) -> u64) -> Samples {
        let mut samples = Samples::new(unit);
        for sample in &self.samples {
            samples.push(whole(count(sample)));
        }
        samples
    }
}
