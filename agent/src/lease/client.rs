//! How everybody else speaks to the pool's task.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use snapback_vmm::snapshot::manifest::SnapshotId;
use tokio::sync::{mpsc, oneshot};

use super::machines::Machines;
use super::principal::{Principal, Separation};
use super::ticket::{Lease, LeaseError};
use crate::config::Fraction;

/// Messages that wait for the task.
const INBOX: usize = 1024;

/// The pool's bounds.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Environments at a time.
    pub max_environments: usize,
    /// How long one may be idle.
    pub idle: Duration,
    /// Whether one serves on after its request, put back to its snapshot.
    pub reset_in_place: bool,
    /// Most pages that a reset copies back.
    pub page_budget: u64,
    /// The part of the resets that is verified.
    pub verify: Fraction,
    /// What is between two principals' requests in one.
    pub separation: Separation,
    /// Of those that wait without a snapshot.
    pub blanks: BlankLimits,
}

/// The bounds of the blank microVMs that wait.
#[derive(Debug, Clone, Copy)]
pub struct BlankLimits {
    /// How many are kept ready for each shape in use.
    pub ready: usize,
    /// How many are started at a time.
    pub starting: usize,
    /// The least time between two starts, and between a request that takes one
    /// and the start of the next: the request goes first.
    pub pause: Duration,
}

/// How many environments there are, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct PoolSummary {
    /// Without a snapshot: they wait for one.
    pub blank: usize,
    /// On the way to wait for a snapshot.
    pub blank_starting: usize,
    /// On the way to be restored.
    pub starting: usize,
    /// Idle.
    pub idle: usize,
    /// With a request.
    pub busy: usize,
    /// Being reset.
    pub resetting: usize,
    /// Compared with their snapshot after a reset.
    pub verifying: usize,
}

impl PoolSummary {
    /// Each state's name with its number.
    #[must_use]
    pub const fn by_state(&self) -> [(&'static str, usize); 7] {
        [
            ("blank", self.blank),
            ("blank_starting", self.blank_starting),
            ("starting", self.starting),
            ("idle", self.idle),
            ("busy", self.busy),
            ("resetting", self.resetting),
            ("verifying", self.verifying),
        ]
    }
}

/// Why environments of an image are not wanted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwanted {
    /// It is gone: whoever waits for one is refused.
    Deleted,
    /// There is a better one: whoever waits for one of this still gets it.
    Replaced,
}

/// What an acquisition ends with.
pub(super) type Grant<V> =
    Result<Lease<<V as Machines>::Machine>, LeaseError<<V as Machines>::RestoreError>>;

/// What the task hears.
pub(super) enum Message<V: Machines> {
    Acquire {
        image: Arc<V::Image>,
        principal: Principal,
        reply: oneshot::Sender<Grant<V>>,
    },
    KeepReady {
        shape: V::Shape,
    },
    Retire {
        image: SnapshotId,
        why: Unwanted,
    },
    Summary {
        reply: oneshot::Sender<PoolSummary>,
    },
    Close,
}

/// Asks the pool for things.
pub struct PoolClient<V: Machines>(mpsc::Sender<Message<V>>);

impl<V: Machines> Clone for PoolClient<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V: Machines> std::fmt::Debug for PoolClient<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PoolClient")
    }
}

impl<V: Machines> PoolClient<V> {
    /// A client, and what its pool hears.
    pub(super) fn channel() -> (Self, mpsc::Receiver<Message<V>>) {
        let (sender, inbox) = mpsc::channel(INBOX);
        (Self(sender), inbox)
    }

    /// An environment of this image for a request of `principal`. Bounded by the caller; giving up is fine.
    ///
    /// # Errors
    /// When there is no room, or the restore fails.
    pub async fn acquire(&self, image: Arc<V::Image>, principal: Principal) -> Grant<V> {
        let (reply, grant) = oneshot::channel();
        let message = Message::Acquire {
            image,
            principal,
            reply,
        };
        let sent = self.0.send(message).await;
        sent.map_err(|_| LeaseError::Closed)?;
        grant.await.unwrap_or(Err(LeaseError::Closed))
    }

    /// Blank microVMs of this shape may soon be needed.
    pub fn keep_ready(&self, shape: V::Shape) {
        // A hint: a full inbox has better things to hear.
        let _ = self.0.try_send(Message::KeepReady { shape });
    }

    /// Ends the environments of an image, those with a request afterwards.
    pub async fn retire(&self, image: SnapshotId, why: Unwanted) {
        // Without a pool there are none.
        let _ = self.0.send(Message::Retire { image, why }).await;
    }

    /// How many environments there are.
    pub async fn summary(&self) -> PoolSummary {
        let (reply, summary) = oneshot::channel();
        let _ = self.0.send(Message::Summary { reply }).await;
        summary.await.unwrap_or_default()
    }

    /// Ends all environments, those with a request afterwards, and then the task.
    pub async fn close(&self) {
        let _ = self.0.send(Message::Close).await;
    }
}
