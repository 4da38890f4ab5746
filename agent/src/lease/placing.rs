//! The pool's task serves whoever waits: asks `placement`, and does what it says.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use snapback_vmm::snapshot::manifest::SnapshotId;
use tokio::sync::oneshot;

use super::machines::Machines;
use super::pool::{Done, Entry, Note, Pool, Waiter};
use super::principal::{Principal, Separation, Served};
use super::state::{State, Step};
use super::ticket::{BlankPool, Lease, LeaseError};
use crate::exec::Poison;
use crate::ids::EnvironmentId;
use crate::placement::{self, Candidate, Choice, Inventory, Relation};
use crate::telemetry::{Change, Retirement};

impl<V: Machines> Pool<V> {
    pub(super) fn refuse(&mut self, image: &SnapshotId) {
        for waiter in self.waiters.remove(image).into_iter().flatten() {
            let _ = waiter.reply.send(Err(LeaseError::Closed));
        }
    }

    /// Serves whoever can be served.
    pub(super) fn place(&mut self) {
        let images: Vec<_> = self.waiters.keys().cloned().collect();
        for image in images {
            while self.place_one(&image) {}
        }
        self.waiters.retain(|_, queue| !queue.is_empty());
    }

    /// Decides for the first that waits for `image`; false when nothing can
    /// happen now.
    pub(super) fn place_one(&mut self, image: &SnapshotId) -> bool {
        let Some(queue) = self.waiters.get_mut(image) else {
            return false;
        };
        queue.retain(|waiter| !waiter.reply.is_closed());
        let waiting = queue.len();
        let Some(first) = queue.front() else {
            return false;
        };
        let (shape, principal) = (V::shape(&first.image), first.principal.clone());
        let separation = self.limits.separation;
        let candidate = |(id, entry): (&EnvironmentId, &Entry<V>)| Candidate {
            id: *id,
            state: entry.state,
            relation: match &entry.image {
                None if entry.retiring => Relation::Other,
                None => Relation::Spare {
                    fits: entry.shape == shape,
                    ready: entry.blank.is_some(),
                },
                Some(own) if !entry.retiring && V::name(own) == image => {
                    let same = entry.principals.is_same(&principal);
                    match separation {
                        Separation::Fresh if !same => Relation::Other,
                        _ => Relation::Wanted { same },
                    }
                }
                Some(_) => Relation::Other,
            },
            since: entry.since,
        };
        let inventory = Inventory::of(self.entries.iter().map(candidate));
        let choice = placement::choose(&inventory, waiting, self.limits.max_environments);
        if matches!(
            choice,
            Choice::Take(_) | Choice::Restore | Choice::Replace(_)
        ) && self.is_another_principals_idle(image, &principal)
        {
            self.metrics.principal_change(Change::Fresh);
        }
        match choice {
            Choice::Wait => return false,
            Choice::Reuse(id) => {
                if let Some(waiter) = self.first_waiter(image) {
                    self.grant(id, waiter);
                }
            }
            Choice::Take(id) => self.take(id, image),
            Choice::Restore => self.start(image),
            Choice::Replace(id) => {
                self.retire(id, Retirement::Replaced);
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

    /// Whether an environment is idle that serves other principals of this image only.
    fn is_another_principals_idle(&self, image: &SnapshotId, principal: &Principal) -> bool {
        self.limits.separation == Separation::Fresh
            && self.entries.values().any(|entry| {
                entry.state == State::Restored
                    && entry.is_of(image)
                    && !entry.principals.is_same(principal)
            })
    }

    /// The first that still waits for `image`.
    pub(super) fn first_waiter(&mut self, image: &SnapshotId) -> Option<Waiter<V>> {
        let queue = self.waiters.get_mut(image)?;
        queue.retain(|waiter| !waiter.reply.is_closed());
        queue.pop_front()
    }

    fn awaited(&self, image: &SnapshotId) -> Option<Arc<V::Image>> {
        let first = self.waiters.get(image).and_then(|queue| queue.front());
        first.map(|waiter| Arc::clone(&waiter.image))
    }

    /// Lends a machine that waits, or has one that is started to wait be lent.
    fn take(&mut self, id: EnvironmentId, image: &SnapshotId) {
        let Some(image) = self.awaited(image) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        self.blanks.let_go_first(self.limits.blanks.pause);
        match entry.blank.take() {
            None => entry.image = Some(image),
            Some(blank) => {
                entry.blank_pool = BlankPool::Hit;
                match self.first_waiter(V::name(&image)) {
                    Some(waiter) => self.lend(id, blank, waiter),
                    None => self.spare(id, blank),
                }
            }
        }
    }

    fn start(&mut self, image: &SnapshotId) {
        let Some(image) = self.awaited(image) else {
            return;
        };
        self.blanks.let_go_first(self.limits.blanks.pause);
        if let Err(error) = self.begin(V::shape(&image), Some(Arc::clone(&image)))
            && let Some(waiter) = self.first_waiter(V::name(&image))
        {
            let _ = waiter.reply.send(Err(LeaseError::Name(Arc::new(error))));
        }
    }

    /// Starts a machine.
    pub(super) fn begin(
        &mut self,
        shape: V::Shape,
        image: Option<Arc<V::Image>>,
    ) -> io::Result<()> {
        let id = EnvironmentId::random()?;
        let entry = Entry {
            state: State::Blank,
            since: Instant::now(),
            shape,
            image,
            blank: None,
            blank_pool: BlankPool::Miss,
            machine: None,
            principals: Served::default(),
            ended: None,
            retiring: false,
            replaced: false,
        };
        self.entries.insert(id, entry);
        let verbs = Arc::clone(&self.verbs);
        self.spawn(id, async move { Done::Blank(verbs.blank(id, shape).await) });
        Ok(())
    }

    /// Nobody wants a blank machine now.
    pub(super) fn spare(&mut self, id: EnvironmentId, blank: V::Blank) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.blank = Some(blank);
        }
    }

    /// Gives a blank machine to a request, which loads the image that it waits for.
    pub(super) fn lend(&mut self, id: EnvironmentId, blank: V::Blank, waiter: Waiter<V>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.image = Some(Arc::clone(&waiter.image));
        let machine = self.verbs.adopt(blank, Arc::clone(&waiter.image));
        self.metrics.restored();
        self.hand_over(id, machine, waiter);
    }

    /// Gives one that stands at its snapshot to a request.
    fn grant(&mut self, id: EnvironmentId, waiter: Waiter<V>) {
        let entry = self.entries.get_mut(&id);
        if let Some(machine) = entry.and_then(|entry| entry.machine.take()) {
            self.hand_over(id, machine, waiter);
        }
    }

    fn hand_over(&mut self, id: EnvironmentId, machine: V::Machine, waiter: Waiter<V>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let was_blank = entry.state == State::Blank;
        let Waiter {
            principal, reply, ..
        } = waiter;
        let fresh = entry.principals.is_nobody().then_some(entry.blank_pool);
        let changes = !entry.principals.is_same(&principal);
        let barrier = self.limits.separation == Separation::Barrier
            && entry.principals.needs_barrier(&principal);
        let (started_sender, started) = oneshot::channel();
        let (home, returned) = oneshot::channel();
        let lease = Lease::new(id, machine, fresh, barrier, started_sender, home);
        self.step(id, Step::Grant);
        match reply.send(Ok(lease)) {
            Ok(()) => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.principals.serve(principal);
                }
                if changes {
                    self.metrics.principal_change(match barrier {
                        true => Change::Barrier,
                        false => Change::Nothing,
                    });
                }
                self.notes.push(Box::pin(async move {
                    (id, Note::Started(started.await.is_ok()))
                }));
                self.notes.push(Box::pin(async move {
                    (id, Note::Returned(returned.await.ok()))
                }));
            }
            Err(Ok(lease)) if was_blank => {
                // Given up at this very moment. It is neither blank any more nor restored.
                drop(lease);
                self.fail(id, Poison::GivenUp);
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
}
