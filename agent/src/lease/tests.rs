//! The pool with microVMs made of nothing.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use snapback_proto::control::ResetReport;
use snapback_vmm::snapshot::manifest::SnapshotId;
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::config::Fraction;
use crate::exec::{Doubt, Poison, Poisonous, ResetEnd};
use crate::ids::EnvironmentId;
use crate::process::{Cause, Fate};
use crate::telemetry::Metrics;

mod blanks;
mod principals;
mod verification;

/// What the pretended microVMs do.
#[derive(Debug)]
struct Pretend {
    /// A reset takes a permit.
    gate: Semaphore,
    /// A start takes a permit.
    starts: Semaphore,
    /// The fates of all that were started.
    fates: Mutex<Vec<Fate>>,
    blank_fails: AtomicBool,
    blanks_ended: AtomicUsize,
    restored: AtomicUsize,
    reset: AtomicUsize,
    ended: AtomicUsize,
    reset_fails: AtomicBool,
    /// A comparison takes a permit.
    comparisons: Semaphore,
    verified: AtomicUsize,
    differs: AtomicBool,
    something_ended: Notify,
}

#[derive(Debug, thiserror::Error)]
#[error("pretended failure")]
struct Failure;

impl Poisonous for Failure {
    fn poison(&self) -> Poison {
        Poison::Mismatch
    }
}

#[derive(Debug)]
struct Machine {
    fate: Fate,
}

impl Default for Pretend {
    fn default() -> Self {
        Self {
            gate: Semaphore::new(1000),
            starts: Semaphore::new(1000),
            fates: Mutex::default(),
            blank_fails: AtomicBool::new(false),
            blanks_ended: AtomicUsize::new(0),
            restored: AtomicUsize::new(0),
            reset: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            reset_fails: AtomicBool::new(false),
            comparisons: Semaphore::new(1000),
            verified: AtomicUsize::new(0),
            differs: AtomicBool::new(false),
            something_ended: Notify::new(),
        }
    }
}

impl Machines for Pretend {
    type Image = SnapshotId;
    /// The first letter of the name.
    type Shape = u8;
    type Blank = Fate;
    type Machine = Machine;
    type RestoreError = Failure;
    type ResetError = Failure;
    type VerifyError = Failure;

    fn name(image: &SnapshotId) -> &SnapshotId {
        image
    }

    fn shape(image: &SnapshotId) -> u8 {
        image.as_str().as_bytes()[0]
    }

    async fn blank(&self, _: EnvironmentId, _: u8) -> Result<Fate, Failure> {
        self.starts.acquire().await.unwrap().forget();
        if self.blank_fails.load(Ordering::Relaxed) {
            return Err(Failure);
        }
        let fate = Fate::default();
        self.fates.lock().unwrap().push(fate.clone());
        Ok(fate)
    }

    fn adopt(&self, fate: Fate, _: Arc<SnapshotId>) -> Machine {
        self.restored.fetch_add(1, Ordering::Relaxed);
        Machine { fate }
    }

    async fn reset(&self, _: &mut Machine, page_budget: u64) -> Result<ResetEnd, Failure> {
        self.gate.acquire().await.unwrap().forget();
        if self.reset_fails.load(Ordering::Relaxed) {
            return Err(Failure);
        }
        let pages = 7;
        if pages > page_budget {
            return Ok(ResetEnd::OverBudget { pages });
        }
        self.reset.fetch_add(1, Ordering::Relaxed);
        Ok(ResetEnd::Done(ResetReport {
            pages,
            ..ResetReport::default()
        }))
    }

    async fn verify(&self, _: &mut Machine) -> Result<(), Failure> {
        self.comparisons.acquire().await.unwrap().forget();
        self.verified.fetch_add(1, Ordering::Relaxed);
        match self.differs.load(Ordering::Relaxed) {
            true => Err(Failure),
            false => Ok(()),
        }
    }

    fn ended(blank: &Fate) -> impl Future<Output = Cause> + Send + 'static {
        let fate = blank.clone();
        async move { fate.sealed().await }
    }

    async fn end(&self, machine: Machine) {
        machine.fate.seal(Cause::Retired);
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.something_ended.notify_one();
    }

    async fn end_blank(&self, blank: Fate) {
        blank.seal(Cause::Retired);
        self.blanks_ended.fetch_add(1, Ordering::Relaxed);
    }
}

type Client = PoolClient<Pretend>;

/// No blank machines wait.
const NO_BLANKS: BlankLimits = BlankLimits {
    ready: 0,
    starting: 1,
    pause: Duration::ZERO,
};

fn pool(max_environments: usize) -> (Arc<Pretend>, Client, tokio::task::JoinHandle<()>) {
    pool_with(max_environments, NO_BLANKS)
}

fn pool_with(
    max_environments: usize,
    blanks: BlankLimits,
) -> (Arc<Pretend>, Client, tokio::task::JoinHandle<()>) {
    let limits = PoolLimits {
        blanks,
        ..limits(max_environments)
    };
    let (pretend, client, _, task) = pool_within(limits);
    (pretend, client, task)
}

fn limits(max_environments: usize) -> PoolLimits {
    PoolLimits {
        max_environments,
        idle: Duration::from_secs(60),
        reset_in_place: true,
        page_budget: 1000,
        verify: Fraction::NONE,
        separation: Separation::Fresh,
        blanks: NO_BLANKS,
    }
}

fn pool_within(
    limits: PoolLimits,
) -> (
    Arc<Pretend>,
    Client,
    Arc<Metrics>,
    tokio::task::JoinHandle<()>,
) {
    let (pretend, metrics) = (Arc::new(Pretend::default()), Arc::new(Metrics::default()));
    let (pool, client) = Pool::new(Arc::clone(&pretend), limits, Arc::clone(&metrics));
    (pretend, client, metrics, tokio::spawn(pool.run()))
}

/// What is counted under a name with its labels.
fn count(metrics: &Metrics, series: &str) -> u64 {
    let text = metrics.encode(&[], 0);
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.unwrap_or_else(|| panic!("{series} is not in {text}"))
        .trim()
        .parse()
        .unwrap()
}

fn image(name: &str) -> Arc<SnapshotId> {
    Arc::new(name.parse().unwrap())
}

async fn run(client: &Client, name: &str) -> (EnvironmentId, bool, ResetOutcome) {
    let mut lease = client
        .acquire(image(name), Principal::default())
        .await
        .unwrap();
    lease.start();
    let (id, fresh) = (lease.id(), lease.is_fresh());
    (id, fresh, lease.finish(None).await.unwrap())
}

#[tokio::test]
async fn an_environment_serves_one_request_after_the_other_with_a_reset_between() {
    let (pretend, client, _task) = pool(4);
    let (first, fresh, outcome) = run(&client, "a").await;
    assert!(fresh);
    assert!(
        matches!(outcome, ResetOutcome::Reset { report, verified: false } if report.pages == 7)
    );
    for _ in 0..5 {
        let (again, fresh, _) = run(&client, "a").await;
        assert_eq!((again, fresh), (first, false));
    }
    assert_eq!(pretend.restored.load(Ordering::Relaxed), 1);
    assert_eq!(pretend.reset.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn a_request_waits_for_the_reset_before_it() {
    let (pretend, client, _task) = pool(4);
    let mut lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    pretend.gate.forget_permits(1000);
    let id = lease.id();
    lease.start();
    let outcome = lease.finish(None);
    let next = tokio::spawn({
        let client = client.clone();
        async move {
            client
                .acquire(image("a"), Principal::default())
                .await
                .unwrap()
                .id()
        }
    });
    while client.summary().await.resetting == 0 {}
    assert!(!next.is_finished());
    pretend.gate.add_permits(1);
    outcome.await.unwrap();
    assert_eq!(next.await.unwrap(), id);
}

#[tokio::test]
async fn without_resets_every_request_has_an_environment_of_its_own() {
    let (pretend, client, metrics, _task) = pool_within(PoolLimits {
        reset_in_place: false,
        ..limits(4)
    });
    for _ in 0..3 {
        let (_, fresh, outcome) = run(&client, "a").await;
        assert!(fresh);
        assert!(matches!(outcome, ResetOutcome::Destroyed(why) if why == "reset.in_place is off"));
    }
    assert_eq!(pretend.restored.load(Ordering::Relaxed), 3);
    assert_eq!(pretend.reset.load(Ordering::Relaxed), 0);
    let retired = count(&metrics, r#"snapback_retired_total{reason="single_use"}"#);
    assert_eq!(retired, 3);
}

#[tokio::test]
async fn a_request_over_the_page_budget_ends_its_environment_and_no_doubt_is_counted() {
    let (pretend, client, metrics, _task) = pool_within(PoolLimits {
        page_budget: 6,
        ..limits(4)
    });
    let (first, _, outcome) = run(&client, "a").await;
    let why = "it wrote 7 pages, and reset.page_budget is 6";
    assert!(matches!(outcome, ResetOutcome::Destroyed(said) if said == why));
    pretend.something_ended.notified().await;
    let (second, fresh, _) = run(&client, "a").await;
    assert!(fresh && second != first);
    let retired = count(&metrics, r#"snapback_retired_total{reason="page_budget"}"#);
    assert_eq!(retired, 2);
    assert_eq!(
        count(&metrics, r#"snapback_poisoned_total{reason="reset"}"#),
        0
    );
    assert_eq!(count(&metrics, "snapback_resets_total"), 0);
}

#[tokio::test]
async fn a_failed_reset_or_a_doubt_or_a_dropped_lease_ends_the_environment() {
    let (pretend, client, metrics, _task) = pool_within(limits(4));
    pretend.reset_fails.store(true, Ordering::Relaxed);
    let (first, _, outcome) = run(&client, "a").await;
    assert!(matches!(outcome, ResetOutcome::Destroyed(why) if why == "pretended failure"));
    pretend.something_ended.notified().await;

    let mut lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    lease.start();
    let second = lease.id();
    let outcome = lease
        .finish(Some(Doubt::new(Poison::Timeout, "it ran too long")))
        .await
        .unwrap();
    assert!(matches!(outcome, ResetOutcome::Destroyed(why) if why == "it ran too long"));
    pretend.something_ended.notified().await;

    let mut lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    lease.start();
    let third = lease.id();
    drop(lease);
    let fourth = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap()
        .id();
    for (reason, expected) in [("mismatch", 1), ("timeout", 1), ("given_up", 1), ("bug", 0)] {
        let series = format!("snapback_poisoned_total{{reason=\"{reason}\"}}");
        assert_eq!(count(&metrics, &series), expected, "{reason}");
    }
    let mut all = vec![first, second, third, fourth];
    all.dedup();
    assert_eq!(all.len(), 4);
    assert_eq!(pretend.reset.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_idle_environment_that_ends_is_not_given_away() {
    let (pretend, client, _task) = pool(4);
    let mut lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    let first = lease.id();
    let fate = lease.start().fate.clone();
    lease.finish(None).await.unwrap();
    while client.summary().await.idle == 0 {}
    fate.seal(Cause::Gone);
    pretend.something_ended.notified().await;
    assert_ne!(
        client
            .acquire(image("a"), Principal::default())
            .await
            .unwrap()
            .id(),
        first
    );
}

#[tokio::test]
async fn one_that_ended_during_its_request_is_not_given_away_either() {
    let (pretend, client, _task) = pool(1);
    let mut lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    let first = lease.id();
    lease.start().fate.seal(Cause::Gone);
    while client.summary().await.busy == 0 {}
    lease.finish(None).await.unwrap();
    pretend.something_ended.notified().await;
    assert_ne!(
        client
            .acquire(image("a"), Principal::default())
            .await
            .unwrap()
            .id(),
        first
    );
}

#[tokio::test]
async fn a_failed_start_is_the_waiting_requests_error_and_the_next_one_tries_again() {
    let (pretend, client, _task) = pool(1);
    pretend.blank_fails.store(true, Ordering::Relaxed);
    let error = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap_err();
    assert!(matches!(error, LeaseError::Restore(_)));
    pretend.blank_fails.store(false, Ordering::Relaxed);
    client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_full_node_refuses_and_an_idle_function_makes_room() {
    let (pretend, client, _task) = pool(2);
    let a = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    let b = client
        .acquire(image("b"), Principal::default())
        .await
        .unwrap();
    assert!(matches!(
        client
            .acquire(image("c"), Principal::default())
            .await
            .unwrap_err(),
        LeaseError::Busy
    ));
    drop(a);
    while client.summary().await.busy == 2 {}
    let mut c = client
        .acquire(image("c"), Principal::default())
        .await
        .unwrap();
    c.start();
    c.finish(None).await.unwrap();
    client
        .acquire(image("d"), Principal::default())
        .await
        .unwrap();
    assert_eq!(pretend.ended.load(Ordering::Relaxed), 1);
    drop(b);
}

#[tokio::test]
async fn who_gives_up_waiting_costs_nothing() {
    let (pretend, client, _task) = pool(1);
    pretend.starts.forget_permits(1000);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move {
            client
                .acquire(image("a"), Principal::default())
                .await
                .map(|lease| lease.id())
        }
    });
    while client.summary().await.starting == 0 {}
    waiting.abort();
    let _ = waiting.await;
    pretend.starts.add_permits(1);
    while client.summary().await.blank == 0 {}
    // What was started for it serves whoever comes next, and whatever that wants.
    let lease = client
        .acquire(image("aa"), Principal::default())
        .await
        .unwrap();
    assert_eq!(lease.blank_pool(), Some(BlankPool::Hit));
    assert_eq!(pretend.fates.lock().unwrap().len(), 1);
    assert_eq!(pretend.restored.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn retiring_a_function_spares_its_running_request_only() {
    let (pretend, client, _task) = pool(4);
    let mut lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    lease.start();
    run(&client, "a").await;
    client.retire("a".parse().unwrap(), Unwanted::Deleted).await;
    pretend.something_ended.notified().await;
    assert_eq!(client.summary().await.busy, 1);
    assert!(matches!(
        lease.finish(None).await.unwrap(),
        ResetOutcome::Reset { .. }
    ));
    pretend.something_ended.notified().await;
    assert_eq!(client.summary().await, PoolSummary::default());
}

#[tokio::test]
async fn who_waits_for_a_snapshot_gets_it_when_that_is_replaced_and_not_when_it_is_deleted() {
    for (why, served) in [(Unwanted::Replaced, true), (Unwanted::Deleted, false)] {
        let (pretend, client, _task) = pool(1);
        pretend.starts.forget_permits(1000);
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.acquire(image("a"), Principal::default()).await }
        });
        while client.summary().await.starting == 0 {}
        client.retire("a".parse().unwrap(), why).await;
        pretend.starts.add_permits(1);
        assert_eq!(waiting.await.unwrap().is_ok(), served, "{why:?}");
    }
}

#[tokio::test]
async fn a_microvm_whose_snapshot_is_replaced_serves_who_waits_for_it_and_ends() {
    let (pretend, client, _task) = pool(1);
    pretend.gate.forget_permits(1000);
    let mut lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    lease.start();
    let reset = lease.finish(None);
    while client.summary().await.resetting == 0 {}
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.acquire(image("a"), Principal::default()).await }
    });
    tokio::task::yield_now().await;
    client
        .retire("a".parse().unwrap(), Unwanted::Replaced)
        .await;
    pretend.gate.add_permits(2);
    reset.await.unwrap();
    let mut next = waiting.await.unwrap().unwrap();
    assert!(!next.is_fresh());
    next.start();
    next.finish(None).await.unwrap();
    pretend.something_ended.notified().await;
    assert_eq!(client.summary().await, PoolSummary::default());
}

#[tokio::test]
async fn closing_waits_for_the_running_request_and_ends_everything() {
    let (pretend, client, task) = pool(2);
    let mut lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    lease.start();
    run(&client, "b").await;
    client.close().await;
    pretend.something_ended.notified().await;
    assert!(matches!(
        client
            .acquire(image("a"), Principal::default())
            .await
            .unwrap_err(),
        LeaseError::Closed
    ));
    assert!(!task.is_finished());
    drop(lease.finish(None));
    task.await.unwrap();
    assert_eq!(pretend.ended.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn idle_environments_are_retired() {
    let (pretend, client, metrics, _task) = pool_within(PoolLimits {
        idle: Duration::from_millis(20),
        ..limits(1)
    });
    run(&client, "a").await;
    // The pool's clock for idleness is the real one.
    while pretend.ended.load(Ordering::Relaxed) == 0 {
        std::thread::sleep(Duration::from_millis(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let retired = count(&metrics, r#"snapback_retired_total{reason="idle"}"#);
    assert_eq!(retired, 1);
}
