//! A time limit that can begin anew.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A limit, and when it is over.
#[derive(Debug)]
pub struct Deadline(watch::Sender<(Duration, Instant)>);

impl Deadline {
    /// A limit that begins now.
    pub fn new(limit: Duration) -> Self {
        Self(watch::Sender::new(from_now(limit)))
    }

    /// Another limit begins now, instead.
    pub fn restart(&self, limit: Duration) {
        self.0.send_replace(from_now(limit));
    }

    /// The limit in force.
    pub fn limit(&self) -> Duration {
        self.0.borrow().0
    }

    /// Waits until the limit in force is over.
    pub async fn passed(&self) {
        let mut changes = self.0.subscribe();
        loop {
            let (_, at) = *changes.borrow_and_update();
            tokio::select! {
                biased;
                // The sender lives as long as `self`.
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(at) => return,
            }
        }
    }
}

fn from_now(limit: Duration) -> (Duration, Instant) {
    (limit, Instant::now() + limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_begins_anew_is_over_later() {
        let start = Instant::now();
        let deadline = Deadline::new(Duration::from_secs(3));
        let restart = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            deadline.restart(Duration::from_secs(10));
            assert_eq!(deadline.limit(), Duration::from_secs(10));
        };
        tokio::join!(deadline.passed(), restart);
        let passed = start.elapsed();
        assert!(passed >= Duration::from_secs(12) && passed < Duration::from_secs(13));
    }
}
