//! The task that owns all environments.
//!
//! It never waits for a microVM: whatever takes time runs in a task of its own and
//! comes back as a message. Everything in flight is bounded by the number of
//! environments and of admitted requests.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde::Serialize;
use snapback_proto::control::ResetReport;
use snapback_vmm::snapshot::manifest::SnapshotId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::machines::Machines;
use super::state::{State, Step};
use super::ticket::{Lease, LeaseError, ResetOutcome, Returned};
use crate::ids::EnvironmentId;
use crate::placement::{self, Candidate, Choice, Inventory};
use crate::process::Cause;
use crate::telemetry::chain;

/// Messages that wait for the task.
const INBOX: usize = 1024;

/// The pool's bounds.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Environments at a time.
    pub max_environments: usize,
    /// How long one may be idle.
    pub idle: Duration,
}

/// How many environments there are, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct PoolSummary {
    /// On the way to be restored.
    pub starting: usize,
    /// Idle.
    pub idle: usize,
    /// With a request.
    pub busy: usize,
    /// Being reset.
    pub resetting: usize,
}

type Grant<V> = Result<Lease<<V as Machines>::Machine>, LeaseError<<V as Machines>::RestoreError>>;

enum Message<V: Machines> {
    Acquire {
        image: Arc<V::Image>,
        reply: oneshot::Sender<Grant<V>>,
    },
    Retire {
        image: SnapshotId,
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
    /// An environment of this image. Bounded by the caller; giving up is fine.
    ///
    /// # Errors
    /// When there is no room, or the restore fails.
    pub async fn acquire(&self, image: Arc<V::Image>) -> Grant<V> {
        let (reply, grant) = oneshot::channel();
        let sent = self.0.send(Message::Acquire { image, reply }).await;
        sent.map_err(|_| LeaseError::Closed)?;
        grant.await.unwrap_or(Err(LeaseError::Closed))
    }

    /// Ends the environments of an image, those with a request afterwards.
    pub async fn retire(&self, image: SnapshotId) {
        // Without a pool there are none.
        let _ = self.0.send(Message::Retire { image }).await;
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

/// What a task brings back.
enum Done<V: Machines> {
    Blank(Result<V::Blank, V::RestoreError>),
    Restored(Result<V::Machine, V::RestoreError>),
    Reset(
        V::Machine,
        Result<ResetReport, V::ResetError>,
        oneshot::Sender<ResetOutcome>,
    ),
    Ended,
}

/// What is heard of an environment that somebody else has.
enum Note<M> {
    /// False when the lease was dropped before.
    Started(bool),
    /// `None` when the lease was dropped.
    Returned(Option<Returned<M>>),
    Ended(Cause),
}

struct Entry<V: Machines> {
    state: State,
    since: Instant,
    image: Arc<V::Image>,
    /// Here while it is `Restored`.
    machine: Option<V::Machine>,
    served: bool,
    ended: Option<Cause>,
    retiring: bool,
}

struct Waiter<V: Machines> {
    image: Arc<V::Image>,
    reply: oneshot::Sender<Grant<V>>,
}

/// The owner of all environments.
pub struct Pool<V: Machines> {
    verbs: Arc<V>,
    limits: PoolLimits,
    inbox: mpsc::Receiver<Message<V>>,
    entries: HashMap<EnvironmentId, Entry<V>>,
    waiters: HashMap<SnapshotId, VecDeque<Waiter<V>>>,
    tasks: JoinSet<(EnvironmentId, Done<V>)>,
    task_of: HashMap<tokio::task::Id, EnvironmentId>,
    notes: FuturesUnordered<BoxFuture<'static, (EnvironmentId, Note<V::Machine>)>>,
    closing: bool,
}

impl<V: Machines> Pool<V> {
    /// A pool without environments; [`Pool::run`] is its task.
    #[must_use]
    pub fn new(verbs: Arc<V>, limits: PoolLimits) -> (Self, PoolClient<V>) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let pool = Self {
            verbs,
            limits,
            inbox,
            entries: HashMap::new(),
            waiters: HashMap::new(),
            tasks: JoinSet::new(),
            task_of: HashMap::new(),
            notes: FuturesUnordered::new(),
            closing: false,
        };
        (pool, PoolClient(sender))
    }

    /// Runs until it is closed and every environment has ended.
    pub async fn run(mut self) {
        let mut idle_check = tokio::time::interval(self.limits.idle.div_f64(4.0));
        loop {
            if self.closing && self.entries.is_empty() && self.tasks.is_empty() {
                return;
            }
            // News of environments first: a request that comes right after the
            // answer to the last one finds its environment on the way back.
            tokio::select! {
                biased;
                Some((id, note)) = self.notes.next() => self.note(id, note),
                Some(joined) = self.tasks.join_next_with_id() => self.join(joined),
                message = self.inbox.recv(), if !self.closing => match message {
                    Some(message) => self.hear(message),
                    None => self.close(),
                },
                _ = idle_check.tick() => self.retire_idle(),
            }
            self.place();
        }
    }

    fn hear(&mut self, message: Message<V>) {
        match message {
            Message::Acquire { reply, .. } if self.closing => {
                let _ = reply.send(Err(LeaseError::Closed));
            }
            Message::Acquire { image, reply } => {
                let name = V::name(&image).clone();
                self.waiters
                    .entry(name)
                    .or_default()
                    .push_back(Waiter { image, reply });
            }
            Message::Retire { image } => {
                self.refuse(&image);
                self.retire_where(|entry| *V::name(&entry.image) == image);
            }
            Message::Summary { reply } => {
                let _ = reply.send(self.summary());
            }
            Message::Close => self.close(),
        }
    }

    fn close(&mut self) {
        if !std::mem::replace(&mut self.closing, true) {
            self.inbox.close();
            let images: Vec<_> = self.waiters.keys().cloned().collect();
            images.iter().for_each(|image| self.refuse(image));
            self.retire_where(|_| true);
        }
    }

    fn refuse(&mut self, image: &SnapshotId) {
        for waiter in self.waiters.remove(image).into_iter().flatten() {
            let _ = waiter.reply.send(Err(LeaseError::Closed));
        }
    }

    /// Serves whoever can be served.
    fn place(&mut self) {
        let images: Vec<_> = self.waiters.keys().cloned().collect();
        for image in images {
            while self.place_one(&image) {}
        }
        self.waiters.retain(|_, queue| !queue.is_empty());
    }

    /// Decides for the first that waits for `image`; false when nothing can
    /// happen now.
    fn place_one(&mut self, image: &SnapshotId) -> bool {
        let Some(queue) = self.waiters.get_mut(image) else {
            return false;
        };
        queue.retain(|waiter| !waiter.reply.is_closed());
        let waiting = queue.len();
        if waiting == 0 {
            return false;
        }
        let candidate = |(id, entry): (&EnvironmentId, &Entry<V>)| Candidate {
            id: *id,
            state: entry.state,
            wanted: !entry.retiring && V::name(&entry.image) == image,
            since: entry.since,
        };
        let inventory = Inventory::of(self.entries.iter().map(candidate));
        match placement::choose(&inventory, waiting, self.limits.max_environments) {
            Choice::Wait => return false,
            Choice::Reuse(id) => {
                if let Some(waiter) = self.first_waiter(image) {
                    self.grant(id, waiter);
                }
            }
            Choice::Restore => self.start(image),
            Choice::Replace(id) => {
                self.step(id, Step::Retire);
                self.start(image);
            }
            Choice::Refuse => {
                if let Some(waiter) = self.first_waiter(image) {
                    let _ = waiter.reply.send(Err(LeaseError::Busy));
                }
            }
        }
        true
    }

    fn first_waiter(&mut self, image: &SnapshotId) -> Option<Waiter<V>> {
        self.waiters.get_mut(image)?.pop_front()
    }

    fn start(&mut self, image: &SnapshotId) {
        let first = self.waiters.get(image).and_then(|queue| queue.front());
        let Some(image) = first.map(|waiter| Arc::clone(&waiter.image)) else {
            return;
        };
        let id = match EnvironmentId::random() {
            Ok(id) => id,
            Err(error) => {
                if let Some(waiter) = self.first_waiter(V::name(&image)) {
                    let _ = waiter.reply.send(Err(LeaseError::Name(Arc::new(error))));
                }
                return;
            }
        };
        let entry = Entry {
            state: State::Blank,
            since: Instant::now(),
            image: Arc::clone(&image),
            machine: None,
            served: false,
            ended: None,
            retiring: false,
        };
        self.entries.insert(id, entry);
        let verbs = Arc::clone(&self.verbs);
        self.spawn(
            id,
            async move { Done::Blank(verbs.blank(id, &image).await) },
        );
    }

    fn grant(&mut self, id: EnvironmentId, waiter: Waiter<V>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let Some(machine) = entry.machine.take() else {
            return;
        };
        let fresh = !entry.served;
        let (started_sender, started) = oneshot::channel();
        let (home, returned) = oneshot::channel();
        let lease = Lease::new(id, machine, fresh, started_sender, home);
        self.step(id, Step::Grant);
        match waiter.reply.send(Ok(lease)) {
            Ok(()) => {
                self.notes.push(Box::pin(async move {
                    (id, Note::Started(started.await.is_ok()))
                }));
                self.notes.push(Box::pin(async move {
                    (id, Note::Returned(returned.await.ok()))
                }));
            }
            Err(Ok(lease)) => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.machine = Some(lease.undo());
                }
                self.step(id, Step::Return);
            }
            Err(Err(_)) => {}
        }
    }

    fn join(
        &mut self,
        joined: Result<(tokio::task::Id, (EnvironmentId, Done<V>)), tokio::task::JoinError>,
    ) {
        match joined {
            Ok((task, (id, done))) => {
                self.task_of.remove(&task);
                self.done(id, done);
            }
            Err(error) => {
                // A bug in a verb; what it held is gone already.
                if let Some(id) = self.task_of.remove(&error.id()) {
                    self.poison(id, &error);
                }
            }
        }
    }

    fn done(&mut self, id: EnvironmentId, done: Done<V>) {
        match done {
            Done::Blank(Ok(blank)) => {
                let Some(entry) = self.entries.get(&id) else {
                    return;
                };
                let (verbs, image) = (Arc::clone(&self.verbs), Arc::clone(&entry.image));
                self.spawn(id, async move {
                    Done::Restored(verbs.restore(blank, image).await)
                });
            }
            Done::Restored(Ok(machine)) => {
                let ended = V::ended(&machine);
                self.notes
                    .push(Box::pin(async move { (id, Note::Ended(ended.await)) }));
                self.arrive(id, machine, Step::Loaded);
            }
            Done::Blank(Err(error)) | Done::Restored(Err(error)) => {
                let image = self.entries.get(&id).map(|entry| Arc::clone(&entry.image));
                self.poison(id, &error);
                let waiter = image.and_then(|image| self.first_waiter(V::name(&image)));
                if let Some(waiter) = waiter {
                    let _ = waiter.reply.send(Err(LeaseError::Restore(Arc::new(error))));
                }
            }
            Done::Reset(machine, Ok(report), sender) => {
                let _ = sender.send(ResetOutcome::Reset(report));
                self.arrive(id, machine, Step::Matched);
            }
            Done::Reset(machine, Err(error), sender) => {
                let _ = sender.send(ResetOutcome::Destroyed(chain(&error)));
                self.keep(id, machine);
                self.poison(id, &error);
            }
            Done::Ended => {}
        }
    }

    /// An environment is (again) as its snapshot says.
    fn arrive(&mut self, id: EnvironmentId, machine: V::Machine, step: Step) {
        self.keep(id, machine);
        self.step(id, step);
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        match &entry.ended {
            Some(cause) => {
                let cause = cause.clone();
                tracing::warn!(environment = %id, %cause, "an idle environment ended");
                self.step(id, Step::Fail);
            }
            None if entry.retiring => self.step(id, Step::Retire),
            None => {}
        }
    }

    fn note(&mut self, id: EnvironmentId, note: Note<V::Machine>) {
        match note {
            Note::Started(true) => {
                // `finish` may have come first.
                if self
                    .entries
                    .get(&id)
                    .is_some_and(|entry| entry.state == State::Leased)
                {
                    self.step(id, Step::Start);
                }
            }
            Note::Started(false) => {}
            Note::Returned(Some(Returned::Ran {
                machine,
                doubt,
                report,
            })) => {
                self.finish(id, machine, doubt, report);
            }
            Note::Returned(None) => {
                tracing::warn!(environment = %id, "a request was given up");
                self.step(id, Step::Fail);
            }
            Note::Ended(cause) => {
                let Some(entry) = self.entries.get_mut(&id) else {
                    return;
                };
                entry.ended = Some(cause.clone());
                if entry.state == State::Restored {
                    tracing::warn!(environment = %id, %cause, "an idle environment ended");
                    self.step(id, Step::Fail);
                }
            }
        }
    }

    fn finish(
        &mut self,
        id: EnvironmentId,
        mut machine: V::Machine,
        doubt: Option<String>,
        report: oneshot::Sender<ResetOutcome>,
    ) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if entry.state == State::Leased {
            // Both notes of this lease were ready, and this one came first.
            self.step(id, Step::Start);
        }
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.served = true;
        if let Some(doubt) = doubt {
            tracing::info!(environment = %id, doubt, "destroying an environment");
            let _ = report.send(ResetOutcome::Destroyed(doubt));
            self.keep(id, machine);
            self.step(id, Step::Fail);
            return;
        }
        self.step(id, Step::Finish);
        let verbs = Arc::clone(&self.verbs);
        self.spawn(id, async move {
            let result = verbs.reset(&mut machine).await;
            Done::Reset(machine, result, report)
        });
    }

    fn poison(&mut self, id: EnvironmentId, error: &dyn std::error::Error) {
        tracing::warn!(environment = %id, error = chain(error), "destroying an environment");
        self.step(id, Step::Fail);
    }

    fn keep(&mut self, id: EnvironmentId, machine: V::Machine) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.machine = Some(machine);
        }
    }

    /// The only place where a state changes.
    fn step(&mut self, id: EnvironmentId, step: Step) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.state = entry.state.after(step).unwrap_or_else(|illegal| {
            tracing::error!(environment = %id, %illegal, "poisoning an environment");
            State::Poisoned
        });
        entry.since = Instant::now();
        if entry.state.is_end() {
            let machine = self.entries.remove(&id).and_then(|entry| entry.machine);
            if let Some(machine) = machine {
                let verbs = Arc::clone(&self.verbs);
                self.spawn(id, async move {
                    verbs.end(machine).await;
                    Done::Ended
                });
            }
        }
    }

    fn spawn(&mut self, id: EnvironmentId, work: impl Future<Output = Done<V>> + Send + 'static) {
        let handle = self.tasks.spawn(async move { (id, work.await) });
        self.task_of.insert(handle.id(), id);
    }

    fn retire_where(&mut self, unwanted: impl Fn(&Entry<V>) -> bool) {
        let mut idle = Vec::new();
        for (id, entry) in &mut self.entries {
            if unwanted(entry) {
                entry.retiring = true;
                if entry.state == State::Restored {
                    idle.push(*id);
                }
            }
        }
        idle.into_iter().for_each(|id| self.step(id, Step::Retire));
    }

    fn retire_idle(&mut self) {
        let limit = self.limits.idle;
        let idle =
            |entry: &Entry<V>| entry.state == State::Restored && entry.since.elapsed() >= limit;
        self.retire_where(idle);
    }

    fn summary(&self) -> PoolSummary {
        let mut summary = PoolSummary::default();
        for entry in self.entries.values() {
            match entry.state {
                State::Blank => summary.starting += 1,
                State::Restored => summary.idle += 1,
                State::Leased | State::Running => summary.busy += 1,
                State::Resetting => summary.resetting += 1,
                State::Retired | State::Poisoned => {}
            }
        }
        summary
    }
}
