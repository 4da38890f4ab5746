//! The figures of the latest requests, in a bounded ring.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use snapback_proto::control::ResetReport;
use snapback_proto::ids::RequestId;
use tokio::sync::Notify;

use crate::lease::BlankPool;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordStatus {
    /// The function answered.
    Success,
    /// The function, its runtime or its microVM failed while it ran.
    FunctionError,
    /// It did not reach the function.
    NotRun,
}

/// What was measured of one request. Times are in nanoseconds of the host's
/// monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RequestRecord {
    /// The request.
    #[schema(value_type = String)]
    pub request_id: RequestId,
    /// Its function.
    pub function: String,
    /// The environment that served it.
    pub environment: String,
    /// How it ended.
    pub status: RecordStatus,
    /// For example `Sandbox.Timedout`.
    pub error_type: Option<String>,
    /// The environment never served a request before.
    pub fresh: bool,
    /// Whether a blank microVM waited for it; `null` when the environment is not
    /// fresh.
    pub blank_pool: Option<BlankPool>,
    /// The restore generation it ran in.
    pub generation: u64,
    /// Waiting for a place.
    pub queue_ns: u64,
    /// Waiting for an environment.
    pub lease_ns: u64,
    /// The restore of the environment: `Restore` command to reply.
    pub restore_ns: u64,
    /// Page faults of the environment that the pager answered since its restore.
    pub userfaults: u64,
    /// In the VMM: from the arrival of the command that let the guest run (`Restore` in a
    /// fresh environment, else `Run`) to the moment at which its first vCPU entered it.
    pub enter_ns: u64,
    /// From the departure of that command to the guest's confirmation of entropy and clock.
    pub resume_ns: u64,
    /// From the event's departure to the answer's arrival.
    pub function_ns: u64,
    /// From the request's arrival at the node to its answer.
    pub total_ns: u64,
    /// What the reset after it did; `null` when the environment was destroyed.
    #[schema(value_type = Option<Object>)]
    pub reset: Option<ResetReport>,
    /// Pages that it dirtied, from the reset.
    pub dirty_pages: Option<u64>,
    /// Whether the environment was compared with its snapshot after that, and equal.
    pub verified: bool,
    /// Why the environment was destroyed.
    pub destroyed: Option<String>,
    /// Whether `reset` or `destroyed` is decided.
    pub finished: bool,
}

/// The ring.
#[derive(Debug)]
pub struct Records {
    ring: Mutex<Ring>,
    capacity: usize,
    finished: Notify,
}

#[derive(Debug, Default)]
struct Ring {
    order: VecDeque<RequestId>,
    records: HashMap<RequestId, RequestRecord>,
}

impl Records {
    /// An empty ring for `capacity` requests.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            ring: Mutex::default(),
            capacity,
            finished: Notify::new(),
        }
    }

    /// Adds a request that was answered; the oldest one may go.
    pub fn add(&self, record: RequestRecord) {
        let mut ring = self.ring();
        ring.order.push_back(record.request_id.clone());
        ring.records.insert(record.request_id.clone(), record);
        while ring.order.len() > self.capacity {
            if let Some(oldest) = ring.order.pop_front() {
                ring.records.remove(&oldest);
            }
        }
    }

    /// Completes a record, if it is still there.
    pub fn finish(&self, id: &RequestId, complete: impl FnOnce(&mut RequestRecord)) {
        if let Some(record) = self.ring().records.get_mut(id) {
            complete(record);
            record.finished = true;
        }
        self.finished.notify_waiters();
    }

    /// The record of a request; waits up to `limit` until it is finished.
    pub async fn get(&self, id: &RequestId, limit: Duration) -> Option<RequestRecord> {
        let finished = async {
            loop {
                let mut news = std::pin::pin!(self.finished.notified());
                // From here on no news is missed.
                news.as_mut().enable();
                match self.peek(id) {
                    Some(record) if !record.finished => news.await,
                    _ => return,
                }
            }
        };
        // Whatever there is after the time is the answer.
        let _ = tokio::time::timeout(limit, finished).await;
        self.peek(id)
    }

    fn peek(&self, id: &RequestId) -> Option<RequestRecord> {
        self.ring().records.get(id).cloned()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn record(number: u8) -> RequestRecord {
        RequestRecord {
            request_id: RequestId::from_random([number; 16]),
            function: "f".to_owned(),
            environment: String::new(),
            status: RecordStatus::Success,
            error_type: None,
            fresh: true,
            blank_pool: Some(BlankPool::Miss),
            generation: 0,
            queue_ns: 0,
            lease_ns: 0,
            restore_ns: 0,
            enter_ns: 0,
            userfaults: 0,
            resume_ns: 0,
            function_ns: 0,
            total_ns: 0,
            reset: None,
            dirty_pages: None,
            verified: false,
            destroyed: None,
            finished: false,
        }
    }

    #[tokio::test]
    async fn the_oldest_go() {
        let records = Records::new(2);
        (0..3).for_each(|number| records.add(record(number)));
        assert_eq!(records.get(&record(0).request_id, LONG).await, None);
        assert_eq!(records.ring().records.len(), 2);
    }

    #[tokio::test]
    async fn a_reader_waits_for_the_reset() {
        let records = Arc::new(Records::new(2));
        let first = record(1);
        records.add(first.clone());
        let waiting = tokio::spawn({
            let (records, id) = (Arc::clone(&records), first.request_id.clone());
            async move { records.get(&id, LONG).await.unwrap() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        records.finish(&first.request_id, |record| record.dirty_pages = Some(3));
        assert_eq!(waiting.await.unwrap().dirty_pages, Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn but_not_forever() {
        let records = Records::new(2);
        records.add(record(1));
        let record = records.get(&record(1).request_id, LONG).await.unwrap();
        assert!(!record.finished);
    }
}
