//! Resets that are looked at.

use super::*;

fn verifying(verify: Fraction) -> PoolLimits {
    PoolLimits {
        verify,
        ..limits(4)
    }
}

#[tokio::test]
async fn all_resets_are_verified_or_none_or_a_part_of_them() {
    const REQUESTS: usize = 400;
    for (fraction, least, most) in [(0.0, 0, 0), (1.0, REQUESTS, REQUESTS), (0.5, 100, 300)] {
        let fraction = Fraction::try_from(fraction).unwrap();
        let (pretend, client, metrics, _task) = pool_within(verifying(fraction));
        let mut told = 0;
        for _ in 0..REQUESTS {
            let (_, _, outcome) = run(&client, "a").await;
            told += usize::from(matches!(
                outcome,
                ResetOutcome::Reset { verified: true, .. }
            ));
        }
        let verified = pretend.verified.load(Ordering::Relaxed);
        assert!(
            (least..=most).contains(&verified),
            "{fraction:?}: {verified}"
        );
        assert_eq!(told, verified);
        assert_eq!(count(&metrics, "snapback_resets_total"), 400);
        let counted = count(&metrics, "snapback_verified_total");
        assert_eq!(usize::try_from(counted).unwrap(), verified);
    }
}

#[tokio::test]
async fn a_mismatch_destroys_the_environment_and_is_counted() {
    let (pretend, client, metrics, _task) = pool_within(verifying(Fraction::ALL));
    pretend.differs.store(true, Ordering::Relaxed);
    let (first, _, outcome) = run(&client, "a").await;
    assert!(matches!(outcome, ResetOutcome::Destroyed(why) if why == "pretended failure"));
    pretend.something_ended.notified().await;
    pretend.differs.store(false, Ordering::Relaxed);
    let (second, fresh, _) = run(&client, "a").await;
    assert!(fresh && second != first);
    assert_eq!(count(&metrics, "snapback_mismatches_total"), 1);
    let poisoned = count(&metrics, r#"snapback_poisoned_total{reason="mismatch"}"#);
    assert_eq!(poisoned, 1);
    assert_eq!(count(&metrics, "snapback_verified_total"), 1);
}

#[tokio::test]
async fn nobody_waits_for_a_comparison_who_can_have_another_environment() {
    let (pretend, client, _, _task) = pool_within(verifying(Fraction::ALL));
    let mut lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    let first = lease.id();
    lease.start();
    pretend.comparisons.forget_permits(1000);
    let outcome = lease.finish(None);
    while client.summary().await.verifying == 0 {}
    // The comparison goes on, and the request has an environment already.
    let lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    assert_ne!(lease.id(), first);
    assert_eq!(client.summary().await.verifying, 1);
    pretend.comparisons.add_permits(1);
    assert!(matches!(
        outcome.await.unwrap(),
        ResetOutcome::Reset { verified: true, .. }
    ));
    // It serves on.
    let again = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    assert_eq!(again.id(), first);
}

#[tokio::test]
async fn where_there_is_no_other_a_request_waits_for_the_comparison() {
    let (pretend, client, _, _task) = pool_within(PoolLimits {
        verify: Fraction::ALL,
        ..limits(1)
    });
    let mut lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    let first = lease.id();
    lease.start();
    pretend.comparisons.forget_permits(1000);
    let outcome = lease.finish(None);
    while client.summary().await.verifying == 0 {}
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
    tokio::task::yield_now().await;
    assert!(!next.is_finished());
    pretend.comparisons.add_permits(1);
    outcome.await.unwrap();
    assert_eq!(next.await.unwrap(), first);
}
