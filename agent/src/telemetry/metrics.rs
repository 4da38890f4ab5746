//! Figures for Prometheus, in the OpenMetrics text format.
//!
//! Every label has a fixed list of values: nothing that a caller or a function chooses
//! makes a series.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use snapback_proto::control::ResetReport;

use crate::exec::Poison;

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Between {
    between: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// Why an environment that was trusted ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retirement {
    /// Nobody needed it for long.
    Idle,
    /// Another function's, another principal's, or one of its function's new snapshot takes
    /// its place.
    Replaced,
    /// Its function was deleted.
    Deleted,
    /// Environments serve one request here (`reset.in_place = false`).
    SingleUse,
    /// Its request wrote more pages than a reset copies back (`reset.page_budget`).
    PageBudget,
    /// The agent ends.
    Shutdown,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestEnd {
    /// The function answered.
    Success,
    /// The function, its runtime or its microVM failed while it ran.
    FunctionError,
    /// It was admitted, and did not reach the function.
    NotRun,
    /// It was not admitted.
    Refused,
}

/// What was between two requests of different principals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A branch-predictor barrier.
    Barrier,
    /// The second one got another microVM.
    Fresh,
    /// Nothing, because the configuration says so.
    Nothing,
}

impl Retirement {
    /// Every reason.
    const ALL: [Self; 6] = [
        Self::Idle,
        Self::Replaced,
        Self::Deleted,
        Self::SingleUse,
        Self::PageBudget,
        Self::Shutdown,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Replaced => "replaced",
            Self::Deleted => "deleted",
            Self::SingleUse => "single_use",
            Self::PageBudget => "page_budget",
            Self::Shutdown => "shutdown",
        }
    }
}

impl RequestEnd {
    /// Every end.
    const ALL: [Self; 4] = [
        Self::Success,
        Self::FunctionError,
        Self::NotRun,
        Self::Refused,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::FunctionError => "function_error",
            Self::NotRun => "not_run",
            Self::Refused => "refused",
        }
    }
}

impl Change {
    /// Every answer.
    const ALL: [Self; 3] = [Self::Barrier, Self::Fresh, Self::Nothing];

    const fn word(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Fresh => "fresh",
            Self::Nothing => "nothing",
        }
    }
}

/// The agent's figures. Cheap to count, from every task.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Outcome, Counter>,
    environments: Family<State, Gauge>,
    poisoned: Family<Reason, Counter>,
    retired: Family<Reason, Counter>,
    restores: Counter,
    resets: Counter,
    reset_seconds: Histogram,
    reset_pages: Histogram,
    verified: Counter,
    mismatches: Counter,
    changes: Family<Between, Counter>,
    pager_threads: Gauge,
    barrier: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("snapback"),
            requests: Family::default(),
            environments: Family::default(),
            poisoned: Family::default(),
            retired: Family::default(),
            restores: Counter::default(),
            resets: Counter::default(),
            // 16 µs to half a second, and 4 pages to 128 Ki.
            reset_seconds: Histogram::new(exponential_buckets(16e-6, 2.0, 16)),
            reset_pages: Histogram::new(exponential_buckets(4.0, 2.0, 16)),
            verified: Counter::default(),
            mismatches: Counter::default(),
            changes: Family::default(),
            pager_threads: Gauge::default(),
            barrier: Gauge::default(),
        };
        metrics.register();
        metrics.begin_at_zero();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "requests",
            "Requests, by how they ended",
            self.requests.clone(),
        );
        registry.register(
            "environments",
            "MicroVMs that there are, by state",
            self.environments.clone(),
        );
        registry.register(
            "poisoned",
            "MicroVMs that were destroyed because they could not be trusted, by reason",
            self.poisoned.clone(),
        );
        registry.register(
            "retired",
            "MicroVMs that ended although they could be trusted, by reason",
            self.retired.clone(),
        );
        registry.register(
            "restores",
            "Snapshots that were loaded into a microVM",
            self.restores.clone(),
        );
        registry.register(
            "resets",
            "MicroVMs that were put back to their snapshot",
            self.resets.clone(),
        );
        registry.register_with_unit(
            "reset",
            "What a reset takes",
            Unit::Seconds,
            self.reset_seconds.clone(),
        );
        registry.register(
            "reset_pages",
            "Pages that a reset copies back",
            self.reset_pages.clone(),
        );
        registry.register(
            "verified",
            "Resets after which the microVM was compared with its snapshot, and equal",
            self.verified.clone(),
        );
        registry.register(
            "mismatches",
            "Resets after which the microVM was compared with its snapshot, and differed",
            self.mismatches.clone(),
        );
        registry.register(
            "principal_changes",
            "Requests of another principal than the one before, by what was in between",
            self.changes.clone(),
        );
        registry.register(
            "pager_threads",
            "Threads that bring missing pages; with none, no snapshot can be restored lazily",
            self.pager_threads.clone(),
        );
        registry.register(
            "branch_barrier",
            "1 when this host's kernel says that it issues branch-predictor barriers",
            self.barrier.clone(),
        );
    }

    /// Every series is there from the beginning: a first event is an increase.
    fn begin_at_zero(&self) {
        for end in RequestEnd::ALL {
            let outcome = end.word();
            drop(self.requests.get_or_create(&Outcome { outcome }));
        }
        for reason in Poison::ALL.map(Poison::word) {
            drop(self.poisoned.get_or_create(&Reason { reason }));
        }
        for reason in Retirement::ALL.map(Retirement::word) {
            drop(self.retired.get_or_create(&Reason { reason }));
        }
        for between in Change::ALL.map(Change::word) {
            drop(self.changes.get_or_create(&Between { between }));
        }
    }

    /// A request ended.
    pub fn request(&self, end: RequestEnd) {
        let outcome = end.word();
        self.requests.get_or_create(&Outcome { outcome }).inc();
    }

    /// An environment is not trusted any more.
    pub fn poisoned(&self, reason: Poison) {
        let reason = reason.word();
        self.poisoned.get_or_create(&Reason { reason }).inc();
    }

    /// An environment is not needed any more.
    pub fn retired(&self, reason: Retirement) {
        let reason = reason.word();
        self.retired.get_or_create(&Reason { reason }).inc();
    }

    /// A snapshot was given to a machine, whose first request loads it.
    pub fn restored(&self) {
        self.restores.inc();
    }

    /// A reset succeeded.
    pub fn reset(&self, report: &ResetReport) {
        self.resets.inc();
        let seconds = std::time::Duration::from_nanos(report.total_ns).as_secs_f64();
        self.reset_seconds.observe(seconds);
        let pages = u32::try_from(report.pages).unwrap_or(u32::MAX);
        self.reset_pages.observe(f64::from(pages));
    }

    /// A comparison with the snapshot found nothing.
    pub fn verified(&self) {
        self.verified.inc();
    }

    /// A comparison with the snapshot found something.
    pub fn mismatch(&self) {
        self.mismatches.inc();
    }

    /// A request's principal was not that of the one before.
    pub fn principal_change(&self, change: Change) {
        let between = change.word();
        self.changes.get_or_create(&Between { between }).inc();
    }

    /// What is known of the host: whether its kernel issues branch-predictor barriers.
    pub fn set_barrier(&self, there: bool) {
        self.barrier.set(i64::from(there));
    }

    /// The figures as text. What changes by itself is given: how many environments
    /// there are in each state, and the pager's threads.
    #[must_use]
    pub fn encode(&self, environments: &[(&'static str, usize)], pager_threads: usize) -> String {
        let narrow = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for &(state, count) in environments {
            let gauge = self.environments.get_or_create(&State { state });
            gauge.set(narrow(count));
        }
        self.pager_threads.set(narrow(pager_threads));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_before_anything_happened() {
        let text = Metrics::default().encode(&[("idle", 3)], 2);
        for reason in Poison::ALL {
            let line = format!(
                "snapback_poisoned_total{{reason=\"{}\"}} 0\n",
                reason.word()
            );
            assert!(text.contains(&line), "{line}{text}");
        }
        for line in [
            "snapback_environments{state=\"idle\"} 3\n",
            "snapback_pager_threads 2\n",
            "snapback_retired_total{reason=\"idle\"} 0\n",
            "snapback_requests_total{outcome=\"refused\"} 0\n",
            "snapback_principal_changes_total{between=\"fresh\"} 0\n",
            "snapback_resets_total 0\n",
            "snapback_mismatches_total 0\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::default();
        metrics.poisoned(Poison::Mismatch);
        metrics.poisoned(Poison::Mismatch);
        metrics.reset(&ResetReport {
            pages: 50,
            total_ns: 100_000,
            ..ResetReport::default()
        });
        let text = metrics.encode(&[], 0);
        for line in [
            "snapback_poisoned_total{reason=\"mismatch\"} 2\n",
            "snapback_resets_total 1\n",
            "snapback_reset_seconds_bucket{le=\"0.000128\"} 1\n",
            "snapback_reset_pages_sum 50.0\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
