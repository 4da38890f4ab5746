//! Blank microVMs that wait for a snapshot, for each shape in use.
//!
//! They are started one after the other, never faster than the limits say, and
//! only where environments are left over. A request takes one; another shape's
//! request may take its place.

use std::time::{Duration, Instant};

use super::machines::Machines;
use super::pool::{Note, Pool};
use super::ticket::LeaseError;
use crate::ids::EnvironmentId;
use crate::telemetry::Retirement;

/// Shapes that are kept ready at a time; the one asked for longest ago goes.
const MAX_SHAPES: usize = 16;
/// After a failure nothing is started for so long: what fails once fails again.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// Which shapes are in use, and when the next machine may be started.
#[derive(Debug)]
pub(super) struct Blanks<S> {
    /// With the time when each was last asked for, the latest last.
    shapes: Vec<(S, Instant)>,
    not_before: tokio::time::Instant,
}

impl<S> Default for Blanks<S> {
    fn default() -> Self {
        Self {
            shapes: Vec::new(),
            not_before: tokio::time::Instant::now(),
        }
    }
}

impl<S: Copy + PartialEq> Blanks<S> {
    /// A shape is in use.
    pub(super) fn note(&mut self, shape: S) {
        self.shapes.retain(|(known, _)| *known != shape);
        if self.shapes.len() >= MAX_SHAPES {
            self.shapes.remove(0);
        }
        self.shapes.push((shape, Instant::now()));
    }

    /// Forgets what nobody asked for in `limit`.
    pub(super) fn forget_unused(&mut self, limit: Duration) {
        self.shapes.retain(|(_, since)| since.elapsed() < limit);
    }

    /// What is in use, the latest first.
    pub(super) fn shapes(&self) -> impl Iterator<Item = S> {
        self.shapes.iter().rev().map(|(shape, _)| *shape)
    }

    pub(super) const fn not_before(&self) -> tokio::time::Instant {
        self.not_before
    }

    /// Something with a caller begins now; the next start waits for `pause`.
    pub(super) fn let_go_first(&mut self, pause: Duration) {
        let then = tokio::time::Instant::now() + pause;
        self.not_before = self.not_before.max(then);
    }

    /// Something failed.
    pub(super) fn hold_back(&mut self) {
        self.let_go_first(FAILURE_PAUSE);
    }
}

impl<V: Machines> Pool<V> {
    /// A shape of which too few machines wait, when one may be started.
    pub(super) fn missing_blank(&self) -> Option<V::Shape> {
        let limits = self.limits.blanks;
        let spare = || self.entries.values().filter(|entry| entry.image.is_none());
        let starting = spare().filter(|entry| entry.blank.is_none()).count();
        if self.closing
            || starting >= limits.starting
            || self.entries.len() >= self.limits.max_environments
        {
            return None;
        }
        let waiting = |shape| spare().filter(|entry| entry.shape == shape).count();
        self.blanks
            .shapes()
            .find(|shape| waiting(*shape) < limits.ready)
    }

    /// Starts a machine, when one is missing and the time has come.
    pub(super) fn refill(&mut self) {
        if tokio::time::Instant::now() < self.blanks.not_before() {
            return;
        }
        if let Some(shape) = self.missing_blank() {
            self.blanks.let_go_first(self.limits.blanks.pause);
            if let Err(error) = self.begin(shape, None) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a blank machine cannot be named");
                self.blanks.hold_back();
            }
        }
    }

    /// A machine was started: somebody waits for it, or it waits for somebody.
    pub(super) fn blank_is_ready(&mut self, id: EnvironmentId, blank: V::Blank) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let ended = V::ended(&blank);
        self.notes
            .push(Box::pin(async move { (id, Note::Ended(ended.await)) }));
        if let Some(image) = entry.image.take() {
            let retiring = self.closing || entry.retiring;
            match self.first_waiter(V::name(&image)) {
                Some(waiter) if !retiring => return self.lend(id, blank, waiter),
                Some(waiter) => drop(waiter.reply.send(Err(LeaseError::Closed))),
                None => {}
            }
        }
        let retiring = self.closing || self.entries.get(&id).is_some_and(|e| e.retiring);
        self.spare(id, blank);
        if retiring {
            let why = if self.closing {
                Retirement::Shutdown
            } else {
                Retirement::Idle
            };
            self.retire(id, why);
        }
    }
}
