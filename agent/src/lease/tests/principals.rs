//! Requests of different principals.

use super::*;

fn separated(separation: Separation, max_environments: usize) -> PoolLimits {
    PoolLimits {
        separation,
        ..limits(max_environments)
    }
}

/// Runs a request of a tenant; its environment, and whether it ran behind a barrier.
async fn run_for(client: &Client, tenant: Option<&str>) -> (EnvironmentId, bool) {
    let principal = Principal::of(tenant);
    let mut lease = client.acquire(image("a"), principal).await.unwrap();
    lease.start();
    let ran = (lease.id(), lease.needs_barrier());
    lease.finish(None).await.unwrap();
    ran
}

fn changes(metrics: &Metrics) -> [u64; 3] {
    ["barrier", "fresh", "nothing"].map(|between| {
        let series = format!("snapback_principal_changes_total{{between=\"{between}\"}}");
        count(metrics, &series)
    })
}

const A: Option<&str> = Some("a");
const B: Option<&str> = Some("b");

#[tokio::test]
async fn with_barriers_an_environment_serves_all_and_from_the_second_principal_on_behind_one() {
    let (_pretend, client, metrics, _task) = pool_within(separated(Separation::Barrier, 4));
    let (first, barrier) = run_for(&client, A).await;
    assert!(!barrier);
    for (tenant, expected) in [(A, false), (B, true), (B, true), (None, true), (A, true)] {
        assert_eq!(
            run_for(&client, tenant).await,
            (first, expected),
            "{tenant:?}"
        );
    }
    // One who came back to itself is no change.
    assert_eq!(changes(&metrics), [3, 0, 0]);
}

#[tokio::test]
async fn with_fresh_ones_an_environment_never_serves_two_principals() {
    let (pretend, client, metrics, _task) = pool_within(separated(Separation::Fresh, 4));
    let (of_a, _) = run_for(&client, A).await;
    let (of_b, _) = run_for(&client, B).await;
    let (of_owner, _) = run_for(&client, None).await;
    assert!(of_a != of_b && of_b != of_owner && of_owner != of_a);
    for _ in 0..3 {
        assert_eq!(run_for(&client, A).await, (of_a, false));
        assert_eq!(run_for(&client, B).await, (of_b, false));
        assert_eq!(run_for(&client, None).await, (of_owner, false));
    }
    assert_eq!(pretend.restored.load(Ordering::Relaxed), 3);
    assert_eq!(changes(&metrics), [0, 2, 0]);
}

#[tokio::test]
async fn with_fresh_ones_on_a_full_node_the_idle_one_of_another_principal_makes_room() {
    let (pretend, client, metrics, _task) = pool_within(separated(Separation::Fresh, 1));
    let mut seen = Vec::new();
    for tenant in [A, B, A] {
        seen.push(run_for(&client, tenant).await.0);
    }
    seen.dedup();
    assert_eq!(seen.len(), 3);
    assert_eq!(pretend.ended.load(Ordering::Relaxed), 2);
    let replaced = count(&metrics, r#"snapback_retired_total{reason="replaced"}"#);
    assert_eq!(replaced, 2);
}

#[tokio::test]
async fn where_all_trust_one_another_nothing_is_between_them() {
    let (_pretend, client, metrics, _task) = pool_within(separated(Separation::Nothing, 4));
    let (first, _) = run_for(&client, A).await;
    assert_eq!(run_for(&client, B).await, (first, false));
    assert_eq!(changes(&metrics), [0, 0, 1]);
}

#[tokio::test]
async fn whoever_has_an_environment_of_its_own_gets_that_one() {
    let (_pretend, client, _, _task) = pool_within(separated(Separation::Barrier, 4));
    let mut leases = Vec::new();
    for tenant in [A, B] {
        let principal = Principal::of(tenant);
        leases.push(client.acquire(image("a"), principal).await.unwrap());
    }
    let mut own = Vec::new();
    for mut lease in leases {
        lease.start();
        own.push(lease.id());
        lease.finish(None).await.unwrap();
    }
    for _ in 0..3 {
        assert_eq!(run_for(&client, A).await, (own[0], false));
        assert_eq!(run_for(&client, B).await, (own[1], false));
    }
}

#[tokio::test]
async fn an_environment_that_nobody_took_has_served_nobody() {
    let (pretend, client, _, _task) = pool_within(separated(Separation::Fresh, 1));
    pretend.starts.forget_permits(1000);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { run_for(&client, A).await }
    });
    while client.summary().await.starting == 0 {}
    waiting.abort();
    let _ = waiting.await;
    pretend.starts.add_permits(1000);
    while client.summary().await.blank == 0 {}
    run_for(&client, B).await;
    assert_eq!(pretend.restored.load(Ordering::Relaxed), 1);
}
