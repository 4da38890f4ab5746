//! The task that owns all environments.
//!
//! It never waits for a microVM: whatever takes time runs in a task of its own and
//! comes back as a message. Everything in flight is bounded by the number of
//! environments and of admitted requests.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use snapback_proto::control::ResetReport;
use snapback_proto::words::chain;
use snapback_vmm::snapshot::manifest::SnapshotId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::blanks::Blanks;
use super::client::{Grant, Message, PoolClient, PoolLimits, PoolSummary, Unwanted};
use super::machines::Machines;
use super::principal::{Principal, Served};
use super::state::{State, Step};
use super::ticket::{BlankPool, LeaseError, ResetOutcome, Returned};
use crate::exec::{Doubt, Poison, Poisonous, ResetEnd};
use crate::ids::EnvironmentId;
use crate::process::Cause;
use crate::telemetry::{Metrics, Retirement};

/// What a task brings back.
pub(super) enum Done<V: Machines> {
    Blank(Result<V::Blank, V::RestoreError>),
    Reset(
        V::Machine,
        Result<ResetEnd, V::ResetError>,
        oneshot::Sender<ResetOutcome>,
    ),
    Verified(
        V::Machine,
        Result<ResetReport, V::VerifyError>,
        oneshot::Sender<ResetOutcome>,
    ),
    Ended,
}

/// What is heard of an environment that somebody else has.
pub(super) enum Note<M> {
    /// False when the lease was dropped before.
    Started(bool),
    /// `None` when the lease was dropped.
    Returned(Option<Returned<M>>),
    Ended(Cause),
}

pub(super) struct Entry<V: Machines> {
    pub(super) state: State,
    pub(super) since: Instant,
    pub(super) shape: V::Shape,
    /// `None` while it waits, or is started to wait, for any image of its shape.
    pub(super) image: Option<Arc<V::Image>>,
    /// Here while it waits for an image.
    pub(super) blank: Option<V::Blank>,
    pub(super) blank_pool: BlankPool,
    /// Here while it is `Restored`.
    pub(super) machine: Option<V::Machine>,
    pub(super) principals: Served,
    pub(super) ended: Option<Cause>,
    /// It serves nobody any more.
    pub(super) retiring: bool,
    /// It serves whoever waits for its image, and nobody else.
    pub(super) replaced: bool,
}

impl<V: Machines> Entry<V> {
    pub(super) fn is_of(&self, image: &SnapshotId) -> bool {
        self.image.as_ref().is_some_and(|own| V::name(own) == image)
    }
}

pub(super) struct Waiter<V: Machines> {
    pub(super) image: Arc<V::Image>,
    pub(super) principal: Principal,
    pub(super) reply: oneshot::Sender<Grant<V>>,
}

/// The owner of all environments.
pub struct Pool<V: Machines> {
    pub(super) verbs: Arc<V>,
    pub(super) limits: PoolLimits,
    pub(super) metrics: Arc<Metrics>,
    inbox: mpsc::Receiver<Message<V>>,
    pub(super) entries: HashMap<EnvironmentId, Entry<V>>,
    pub(super) waiters: HashMap<SnapshotId, VecDeque<Waiter<V>>>,
    tasks: JoinSet<(EnvironmentId, Done<V>)>,
    task_of: HashMap<tokio::task::Id, EnvironmentId>,
    pub(super) notes: FuturesUnordered<BoxFuture<'static, (EnvironmentId, Note<V::Machine>)>>,
    pub(super) blanks: Blanks<V::Shape>,
    pub(super) closing: bool,
}

impl<V: Machines> Pool<V> {
    /// A pool without environments; [`Pool::run`] is its task.
    #[must_use]
    pub fn new(verbs: Arc<V>, limits: PoolLimits, metrics: Arc<Metrics>) -> (Self, PoolClient<V>) {
        let (client, inbox) = PoolClient::channel();
        let pool = Self {
            verbs,
            limits,
            metrics,
            inbox,
            entries: HashMap::new(),
            waiters: HashMap::new(),
            tasks: JoinSet::new(),
            task_of: HashMap::new(),
            notes: FuturesUnordered::new(),
            blanks: Blanks::default(),
            closing: false,
        };
        (pool, client)
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
                () = tokio::time::sleep_until(self.blanks.not_before()),
                    if self.missing_blank().is_some() => {}
            }
            self.place();
            self.refill();
        }
    }

    fn hear(&mut self, message: Message<V>) {
        match message {
            Message::Acquire { reply, .. } if self.closing => {
                let _ = reply.send(Err(LeaseError::Closed));
            }
            Message::Acquire {
                image,
                principal,
                reply,
            } => {
                self.blanks.note(V::shape(&image));
                let name = V::name(&image).clone();
                self.waiters.entry(name).or_default().push_back(Waiter {
                    image,
                    principal,
                    reply,
                });
            }
            Message::KeepReady { shape } => self.blanks.note(shape),
            Message::Retire { image, why } => {
                if why == Unwanted::Deleted {
                    self.refuse(&image);
                    self.retire_where(Retirement::Deleted, |entry| entry.is_of(&image));
                } else {
                    self.replace(&image);
                }
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
            self.retire_where(Retirement::Shutdown, |_| true);
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
                    let words = chain(&error);
                    self.destroy(id, &Doubt::new(Poison::GivenUp, words));
                }
            }
        }
    }

    fn done(&mut self, id: EnvironmentId, done: Done<V>) {
        match done {
            Done::Blank(Ok(blank)) => self.blank_is_ready(id, blank),
            Done::Blank(Err(error)) => {
                let image = self.entries.get(&id).and_then(|entry| entry.image.clone());
                if image.is_none() {
                    self.blanks.hold_back();
                }
                self.destroy(id, &Doubt::from(&error));
                let waiter = image.and_then(|image| self.first_waiter(V::name(&image)));
                if let Some(waiter) = waiter {
                    let _ = waiter.reply.send(Err(LeaseError::Restore(Arc::new(error))));
                }
            }
            Done::Reset(machine, Ok(ResetEnd::OverBudget { pages }), sender) => {
                self.exceed(id, machine, pages, sender);
            }
            Done::Reset(machine, Ok(ResetEnd::Done(report)), sender) => {
                self.metrics.reset(&report);
                if self.is_sampled(id) {
                    self.verify(id, machine, report, sender);
                    return;
                }
                let verified = false;
                let _ = sender.send(ResetOutcome::Reset { report, verified });
                self.arrive(id, machine);
            }
            Done::Verified(machine, Ok(report), sender) => {
                self.metrics.verified();
                let verified = true;
                let _ = sender.send(ResetOutcome::Reset { report, verified });
                self.arrive(id, machine);
            }
            Done::Reset(machine, Err(error), sender) => {
                self.lose(id, machine, &Doubt::from(&error), sender);
            }
            Done::Verified(machine, Err(error), sender) => {
                if error.poison() == Poison::Mismatch {
                    self.metrics.mismatch();
                }
                self.lose(id, machine, &Doubt::from(&error), sender);
            }
            Done::Ended => {}
        }
    }

    /// An environment is again as its snapshot says.
    fn arrive(&mut self, id: EnvironmentId, machine: V::Machine) {
        self.keep(id, machine);
        self.step(id, Step::Matched);
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        match &entry.ended {
            Some(cause) => {
                let cause = cause.clone();
                tracing::warn!(environment = %id, %cause, "an idle environment ended");
                self.fail(id, Poison::of(&cause));
            }
            None if entry.retiring => self.retire(id, self.retirement()),
            None if entry.replaced && !self.is_awaited(entry) => {
                self.retire(id, Retirement::Replaced);
            }
            None => {}
        }
    }

    /// Whether somebody waits for the environment's image.
    fn is_awaited(&self, entry: &Entry<V>) -> bool {
        let image = entry.image.as_ref().map(|image| V::name(image));
        let queue = image.and_then(|image| self.waiters.get(image));
        queue.is_some_and(|queue| queue.iter().any(|waiter| !waiter.reply.is_closed()))
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
                self.fail(id, Poison::GivenUp);
            }
            Note::Ended(cause) => {
                let Some(entry) = self.entries.get_mut(&id) else {
                    return;
                };
                entry.ended = Some(cause.clone());
                if entry.blank.is_some() {
                    tracing::warn!(environment = %id, %cause, "a blank machine ended");
                    self.blanks.hold_back();
                    self.fail(id, Poison::of(&cause));
                } else if entry.state == State::Restored {
                    tracing::warn!(environment = %id, %cause, "an idle environment ended");
                    self.fail(id, Poison::of(&cause));
                }
            }
        }
    }

    pub(super) fn destroy(&mut self, id: EnvironmentId, doubt: &Doubt) {
        let reason = doubt.reason.word();
        tracing::warn!(environment = %id, reason, %doubt, "destroying an environment");
        self.fail(id, doubt.reason);
    }

    pub(super) fn keep(&mut self, id: EnvironmentId, machine: V::Machine) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.machine = Some(machine);
        }
    }

    /// An environment is not trusted any more.
    pub(super) fn fail(&mut self, id: EnvironmentId, reason: Poison) {
        if self.change(id, Step::Fail) == Some(State::Poisoned) {
            self.metrics.poisoned(reason);
        }
    }

    /// An environment is not needed any more.
    pub(super) fn retire(&mut self, id: EnvironmentId, reason: Retirement) {
        match self.change(id, Step::Retire) {
            Some(State::Retired) => self.metrics.retired(reason),
            Some(State::Poisoned) => self.metrics.poisoned(Poison::Bug),
            _ => {}
        }
    }

    /// A step that does not end an environment.
    pub(super) fn step(&mut self, id: EnvironmentId, step: Step) {
        if self.change(id, step) == Some(State::Poisoned) {
            self.metrics.poisoned(Poison::Bug);
        }
    }

    /// The only place where a state changes; the state after it.
    fn change(&mut self, id: EnvironmentId, step: Step) -> Option<State> {
        let entry = self.entries.get_mut(&id)?;
        entry.state = entry.state.after(step).unwrap_or_else(|illegal| {
            tracing::error!(environment = %id, %illegal, "poisoning an environment");
            State::Poisoned
        });
        entry.since = Instant::now();
        let state = entry.state;
        if state.is_end() {
            let entry = self.entries.remove(&id)?;
            let verbs = Arc::clone(&self.verbs);
            self.spawn(id, async move {
                if let Some(machine) = entry.machine {
                    verbs.end(machine).await;
                }
                if let Some(blank) = entry.blank {
                    verbs.end_blank(blank).await;
                }
                Done::Ended
            });
        }
        Some(state)
    }

    pub(super) fn spawn(
        &mut self,
        id: EnvironmentId,
        work: impl Future<Output = Done<V>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(async move { (id, work.await) });
        self.task_of.insert(handle.id(), id);
    }

    /// Why what is not wanted any more ends when its request has ended.
    const fn retirement(&self) -> Retirement {
        if self.closing {
            Retirement::Shutdown
        } else {
            Retirement::Deleted
        }
    }

    fn retire_where(&mut self, why: Retirement, unwanted: impl Fn(&Entry<V>) -> bool) {
        let mut idle = Vec::new();
        for (id, entry) in &mut self.entries {
            if unwanted(entry) {
                entry.retiring = true;
                if entry.state == State::Restored || entry.blank.is_some() {
                    idle.push(*id);
                }
            }
        }
        idle.into_iter().for_each(|id| self.retire(id, why));
    }

    /// The environments of an image that nobody will ask for any more serve who waits already.
    fn replace(&mut self, image: &SnapshotId) {
        let mut idle = Vec::new();
        for (id, entry) in &mut self.entries {
            if entry.is_of(image) {
                entry.replaced = true;
                if entry.state == State::Restored {
                    idle.push(*id);
                }
            }
        }
        for id in idle {
            self.retire(id, Retirement::Replaced);
        }
    }

    fn retire_idle(&mut self) {
        let limit = self.limits.idle;
        let idle =
            |entry: &Entry<V>| entry.state == State::Restored && entry.since.elapsed() >= limit;
        self.retire_where(Retirement::Idle, idle);
        self.blanks.forget_unused(limit);
        let shapes: Vec<_> = self.blanks.shapes().collect();
        let unused = |entry: &Entry<V>| entry.blank.is_some() && !shapes.contains(&entry.shape);
        self.retire_where(Retirement::Idle, unused);
    }

    fn summary(&self) -> PoolSummary {
        let mut summary = PoolSummary::default();
        for entry in self.entries.values() {
            match entry.state {
                State::Blank if entry.blank.is_some() => summary.blank += 1,
                State::Blank if entry.image.is_none() => summary.blank_starting += 1,
                State::Blank => summary.starting += 1,
                State::Restored => summary.idle += 1,
                State::Leased | State::Running => summary.busy += 1,
                State::Resetting => summary.resetting += 1,
                State::Verifying => summary.verifying += 1,
                State::Retired | State::Poisoned => {}
            }
        }
        summary
    }
}
