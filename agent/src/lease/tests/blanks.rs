//! Blank machines that wait.

use super::*;

const PAUSE: Duration = Duration::from_millis(100);

fn limits(ready: usize, starting: usize) -> BlankLimits {
    BlankLimits {
        ready,
        starting,
        pause: PAUSE,
    }
}

/// Waits (the clock is a pretended one) until so many wait.
async fn until_blank(client: &Client, count: usize) {
    let patience = Duration::from_secs(30);
    let waiting = async {
        while client.summary().await.blank != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(patience, waiting)
        .await
        .expect("the blank machines never came");
}

/// Machines that were started and did not end.
fn ready(pretend: &Pretend) -> usize {
    let fates = pretend.fates.lock().unwrap();
    fates.iter().filter(|fate| fate.known().is_none()).count()
}

fn fate(pretend: &Pretend, number: usize) -> Fate {
    pretend.fates.lock().unwrap()[number].clone()
}

#[tokio::test(start_paused = true)]
async fn machines_wait_before_anybody_asks_and_a_request_takes_one() {
    let (_, client, _task) = pool_with(4, limits(2, 1));
    assert_eq!(client.summary().await.blank, 0);
    client.keep_ready(b'a');
    until_blank(&client, 2).await;
    let lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    assert_eq!(lease.blank_pool(), Some(BlankPool::Hit));
    // Another function of the same shape.
    let other = client
        .acquire(image("aa"), Principal::default())
        .await
        .unwrap();
    assert_eq!(other.blank_pool(), Some(BlankPool::Hit));
    until_blank(&client, 2).await;
}

#[tokio::test(start_paused = true)]
async fn without_one_that_waits_one_is_started() {
    let (_pretend, client, _task) = pool_with(4, limits(2, 1));
    let mut lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    assert_eq!(lease.blank_pool(), Some(BlankPool::Miss));
    lease.start();
    lease.finish(None).await.unwrap();
    // The second request had neither.
    let lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    assert_eq!(lease.blank_pool(), None);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_being_started_is_waited_for_and_is_no_hit() {
    let (pretend, client, _task) = pool_with(4, limits(1, 1));
    pretend.starts.forget_permits(1000);
    client.keep_ready(b'a');
    while client.summary().await.blank_starting == 0 {}
    let lease = tokio::spawn({
        let client = client.clone();
        async move {
            client
                .acquire(image("a"), Principal::default())
                .await
                .unwrap()
        }
    });
    while client.summary().await.starting == 0 {
        tokio::task::yield_now().await;
    }
    pretend.starts.add_permits(1);
    let lease = lease.await.unwrap();
    assert_eq!(lease.blank_pool(), Some(BlankPool::Miss));
    assert_eq!(pretend.fates.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn starts_are_bounded_in_number_and_rate_and_a_request_goes_first() {
    let (pretend, client, _task) = pool_with(40, limits(20, 2));
    pretend.starts.forget_permits(1000);
    client.keep_ready(b'a');
    tokio::time::sleep(PAUSE * 10).await;
    assert_eq!(client.summary().await.blank_starting, 2);
    pretend.starts.add_permits(1000);
    let begin = tokio::time::Instant::now();
    until_blank(&client, 20).await;
    assert!(begin.elapsed() >= PAUSE * 17);
    drop(
        client
            .acquire(image("a"), Principal::default())
            .await
            .unwrap(),
    );
    let started = pretend.fates.lock().unwrap().len();
    tokio::time::sleep(PAUSE / 2).await;
    assert_eq!(pretend.fates.lock().unwrap().len(), started);
    until_blank(&client, 20).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_dies_while_it_waits_is_replaced_and_never_given_away() {
    let (pretend, client, _task) = pool_with(4, limits(1, 1));
    client.keep_ready(b'a');
    until_blank(&client, 1).await;
    let dead = fate(&pretend, 0);
    dead.seal(Cause::Gone);
    until_blank(&client, 1).await;
    assert_eq!(pretend.fates.lock().unwrap().len(), 2);
    let mut lease = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    assert!(lease.start().fate.known().is_none());
    assert_eq!(pretend.blanks_ended.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_started_is_nobodys_error_and_tried_again_slowly() {
    let (pretend, client, _task) = pool_with(4, limits(1, 1));
    pretend.blank_fails.store(true, Ordering::Relaxed);
    client.keep_ready(b'a');
    tokio::time::sleep(Duration::from_millis(4500)).await;
    // Once at the beginning and once a second.
    assert_eq!(pretend.starts.available_permits(), 1000 - 5);
    pretend.blank_fails.store(false, Ordering::Relaxed);
    until_blank(&client, 1).await;
}

#[tokio::test(start_paused = true)]
async fn they_count_as_environments_and_make_room_for_another_shape() {
    let (pretend, client, _task) = pool_with(2, limits(5, 1));
    client.keep_ready(b'a');
    until_blank(&client, 2).await;
    tokio::time::sleep(PAUSE * 10).await;
    assert_eq!(client.summary().await.blank, 2);
    let b = client
        .acquire(image("b"), Principal::default())
        .await
        .unwrap();
    assert_eq!(b.blank_pool(), Some(BlankPool::Miss));
    let a = client
        .acquire(image("a"), Principal::default())
        .await
        .unwrap();
    assert_eq!(a.blank_pool(), Some(BlankPool::Hit));
    assert_eq!(pretend.blanks_ended.load(Ordering::Relaxed), 1);
    let summary = client.summary().await;
    assert_eq!((summary.busy, summary.blank), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn closing_ends_those_that_wait_and_those_that_are_started() {
    let (pretend, client, task) = pool_with(4, limits(2, 1));
    client.keep_ready(b'a');
    until_blank(&client, 2).await;
    client.keep_ready(b'b');
    pretend.starts.forget_permits(1000);
    while client.summary().await.blank_starting == 0 {
        tokio::time::sleep(PAUSE).await;
    }
    client.close().await;
    tokio::time::sleep(PAUSE).await;
    assert!(!task.is_finished());
    pretend.starts.add_permits(1);
    task.await.unwrap();
    assert_eq!(ready(&pretend), 0);
    assert_eq!(pretend.blanks_ended.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_shape_that_nobody_uses_any_more_is_not_kept_ready() {
    let (pretend, client, _, _task) = pool_within(PoolLimits {
        idle: Duration::from_millis(20),
        blanks: limits(1, 1),
        ..super::limits(4)
    });
    client.keep_ready(b'a');
    // The pool's clock for idleness is the real one.
    while pretend.blanks_ended.load(Ordering::Relaxed) == 0 {
        std::thread::sleep(Duration::from_millis(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(client.summary().await, PoolSummary::default());
}
