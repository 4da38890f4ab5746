//! How much at once.

use serde::Deserialize;

use super::range::{Range, range, wide};

/// How much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// MicroVMs that serve requests, idle ones included.
    pub max_environments: usize,
    /// Requests that run at the same time.
    pub max_concurrent_requests: usize,
    /// Requests that wait for a place.
    pub max_queued_requests: usize,
    /// Functions that are built at the same time.
    pub max_builds: usize,
    /// Registered functions.
    pub max_functions: usize,
    /// Size of a function's code, unpacked, in MiB.
    pub max_code_mib: u64,
    /// Memory of one function, in MiB.
    pub max_memory_mib: u32,
    /// Size of an answer that comes in pieces, in MiB.
    pub max_streamed_mib: u64,
    /// Requests whose figures are kept.
    pub request_records: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_environments: 64,
            max_concurrent_requests: 64,
            max_queued_requests: 128,
            max_builds: 1,
            max_functions: 1000,
            max_code_mib: 250,
            max_memory_mib: 10_240,
            max_streamed_mib: 200,
            request_records: 1024,
        }
    }
}

impl Limits {
    pub(super) fn ranges(&self) -> Vec<Range> {
        vec![
            range(
                "limits.max_environments",
                wide(self.max_environments),
                1,
                100_000,
            ),
            range(
                "limits.max_concurrent_requests",
                wide(self.max_concurrent_requests),
                1,
                100_000,
            ),
            range(
                "limits.max_queued_requests",
                wide(self.max_queued_requests),
                0,
                1_000_000,
            ),
            range("limits.max_builds", wide(self.max_builds), 1, 64),
            range("limits.max_functions", wide(self.max_functions), 1, 100_000),
            range("limits.max_code_mib", self.max_code_mib, 1, 10_240),
            range(
                "limits.max_memory_mib",
                self.max_memory_mib.into(),
                64,
                10_240,
            ),
            range("limits.max_streamed_mib", self.max_streamed_mib, 1, 10_240),
            range(
                "limits.request_records",
                wide(self.request_records),
                1,
                1_000_000,
            ),
        ]
    }
}
