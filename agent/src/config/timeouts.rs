//! How long at most.

use std::time::Duration;

use serde::Deserialize;

use super::range::{Range, range};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// How long at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// One command to a VMM process, a reset excepted.
    pub command_ms: u64,
    /// A reset.
    pub reset_ms: u64,
    /// A comparison with the snapshot, after a reset.
    pub verify_ms: u64,
    /// From the start of a VMM process to guest-init's first word.
    pub boot_ms: u64,
    /// From there to the function's ready point; a function with a longer timeout has
    /// as long as that. Lambda's limits for functions that are snapshotted.
    pub init_ms: u64,
    /// Until a restored guest confirms entropy and clock.
    pub resume_ms: u64,
    /// Waiting for a place or an environment.
    pub queue_ms: u64,
    /// Running requests after SIGTERM.
    pub drain_ms: u64,
    /// How long an environment stays idle before it is retired.
    pub idle_ms: u64,
    /// How long `GET /v1/requests/{id}` waits for the reset.
    pub record_wait_ms: u64,
    /// Packing a function's code.
    pub pack_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            command_ms: 10_000,
            reset_ms: 10_000,
            verify_ms: 60_000,
            boot_ms: 60_000,
            init_ms: 130_000,
            resume_ms: 10_000,
            queue_ms: 30_000,
            drain_ms: 30_000,
            idle_ms: 600_000,
            record_wait_ms: 10_000,
            pack_ms: 120_000,
        }
    }
}

impl Timeouts {
    pub(super) fn ranges(&self) -> Vec<Range> {
        vec![
            range("timeouts.command_ms", self.command_ms, 1, DAY_MS),
            range("timeouts.reset_ms", self.reset_ms, 1, DAY_MS),
            range("timeouts.verify_ms", self.verify_ms, 1, DAY_MS),
            range("timeouts.boot_ms", self.boot_ms, 1, DAY_MS),
            range("timeouts.init_ms", self.init_ms, 1, DAY_MS),
            range("timeouts.resume_ms", self.resume_ms, 1, DAY_MS),
            range("timeouts.queue_ms", self.queue_ms, 1, DAY_MS),
            range("timeouts.drain_ms", self.drain_ms, 0, DAY_MS),
            range("timeouts.idle_ms", self.idle_ms, 1, DAY_MS),
            range("timeouts.record_wait_ms", self.record_wait_ms, 0, DAY_MS),
            range("timeouts.pack_ms", self.pack_ms, 1, DAY_MS),
        ]
    }

    /// [`Self::command_ms`] as a duration.
    #[must_use]
    pub const fn command(&self) -> Duration {
        Duration::from_millis(self.command_ms)
    }

    /// [`Self::reset_ms`] as a duration.
    #[must_use]
    pub const fn reset(&self) -> Duration {
        Duration::from_millis(self.reset_ms)
    }

    /// [`Self::verify_ms`] as a duration.
    #[must_use]
    pub const fn verify(&self) -> Duration {
        Duration::from_millis(self.verify_ms)
    }
}
