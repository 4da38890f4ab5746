//! Who may run now, who waits, and who is sent away.
//!
//! ```text
//!  request ─► a place is free? ── yes ─► Ticket
//!                 │ no
//!                 ▼
//!             room in the queue? ── no ─► Full
//!                 │ yes
//!                 ▼
//!             waits, at most until its deadline ─► Ticket | TooLate | Draining
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// A request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Every place is taken, and so is every place in the queue.
    #[error("the node runs as many requests as it may, and its queue is full")]
    Full,
    /// No place became free in time.
    #[error("no place became free within {0:?}")]
    TooLate(Duration),
    /// The node takes no more requests.
    #[error("the node is shutting down")]
    Draining,
}

/// The right to run one request, until it is dropped.
#[derive(Debug)]
pub struct Ticket {
    _place: OwnedSemaphorePermit,
    _running: TaskTrackerToken,
}

/// The gate of a node.
#[derive(Debug)]
pub struct Admission {
    places: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    patience: Duration,
    running: TaskTracker,
}

impl Admission {
    /// A gate for `places` requests at a time and `queue` that wait, each at most
    /// for `patience`.
    #[must_use]
    pub fn new(places: usize, queue: usize, patience: Duration) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            queue: Arc::new(Semaphore::new(queue)),
            patience,
            running: TaskTracker::new(),
        }
    }

    /// Admits a request, now or after a wait.
    ///
    /// # Errors
    /// When there is no place, now or in time, or the node is shutting down.
    pub async fn enter(&self) -> Result<Ticket, Refused> {
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => place,
            Err(TryAcquireError::Closed) => return Err(Refused::Draining),
            Err(TryAcquireError::NoPermits) => self.wait().await?,
        };
        Ok(Ticket {
            _place: place,
            _running: self.running.token(),
        })
    }

    async fn wait(&self) -> Result<OwnedSemaphorePermit, Refused> {
        let _queued = self.queue.try_acquire().map_err(|error| match error {
            TryAcquireError::NoPermits => Refused::Full,
            TryAcquireError::Closed => Refused::Draining,
        })?;
        let place = Arc::clone(&self.places).acquire_owned();
        match tokio::time::timeout(self.patience, place).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(Refused::Draining),
            Err(_) => Err(Refused::TooLate(self.patience)),
        }
    }

    /// Whether requests are still admitted.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.places.is_closed()
    }

    /// Admits nobody from now on; those who wait are sent away.
    pub fn close(&self) {
        self.places.close();
        self.queue.close();
        self.running.close();
    }

    /// Waits until every admitted request is done. Bounded by the caller; only
    /// after [`Self::close`].
    pub async fn drained(&self) {
        self.running.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn one_runs_one_waits_and_the_third_is_sent_away() {
        let gate = Arc::new(Admission::new(1, 1, LONG));
        let first = gate.enter().await.unwrap();
        let second = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter().await }
        });
        while gate.queue.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.enter().await.unwrap_err(), Refused::Full);
        drop(first);
        let second = second.await.unwrap().unwrap();
        assert_eq!(gate.queue.available_permits(), 1);
        drop(second);
        gate.enter().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends() {
        let gate = Admission::new(1, 1, LONG);
        let _first = gate.enter().await.unwrap();
        assert_eq!(gate.enter().await.unwrap_err(), Refused::TooLate(LONG));
    }

    #[tokio::test]
    async fn draining_waits_for_those_inside_only() {
        let gate = Arc::new(Admission::new(1, 1, LONG));
        let first = gate.enter().await.unwrap();
        let second = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter().await }
        });
        while gate.queue.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        gate.close();
        assert!(!gate.is_open());
        assert_eq!(second.await.unwrap().unwrap_err(), Refused::Draining);
        assert_eq!(gate.enter().await.unwrap_err(), Refused::Draining);
        let drained = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.drained().await }
        });
        tokio::task::yield_now().await;
        assert!(!drained.is_finished());
        drop(first);
        drained.await.unwrap();
    }
}
