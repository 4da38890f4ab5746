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

    pub(super) fn first_waiter(&mut self, image: &SnapshotId) -> Option<Waiter<V>> {
        self.waiters.get_mut(image)?.pop_front()
    }

    fn awaited(&self, image: &SnapshotId) -> Option<Arc<V::Image>> {
        let first = self.waiters.get(image).and_then(|queue| queue.front());
        first.map(|waiter| Arc::clone(&waiter.image))
    }

    /// Restores in a machine that waits, or is started to wait.
    fn take(&mut self, id: EnvironmentId, image: &SnapshotId) {
        let Some(image) = self.awaited(image) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.image = Some(Arc::clone(&image));
        self.blanks.let_go_first(self.limits.blanks.pause);
        if let Some(blank) = entry.blank.take() {
            entry.blank_pool = BlankPool::Hit;
            self.restore(id, blank, image);
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
        };
        self.entries.insert(id, entry);
        let verbs = Arc::clone(&self.verbs);
        self.spawn(id, async move { Done::Blank(verbs.blank(id, shape).await) });
        Ok(())
    }

    pub(super) fn restore(&mut self, id: EnvironmentId, blank: V::Blank, image: Arc<V::Image>) {
        let verbs = Arc::clone(&self.verbs);
        self.spawn(id, async move {
            Done::Restored(verbs.restore(blank, image).await)
        });
    }

    fn grant(&mut self, id: EnvironmentId, waiter: Waiter<V>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let Some(machine) = entry.machine.take() else {
            return;
        };
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
