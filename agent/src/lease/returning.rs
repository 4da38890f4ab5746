//! The pool's task takes environments back: it has them reset, and a part of them
//! compared with their snapshot, or destroys them.

use std::sync::Arc;

use snapback_proto::control::ResetReport;
use tokio::sync::oneshot;

use super::machines::Machines;
use super::pool::{Done, Pool};
use super::state::{State, Step};
use super::ticket::ResetOutcome;
use crate::exec::Doubt;
use crate::ids::{self, EnvironmentId};
use crate::telemetry::Retirement;

impl<V: Machines> Pool<V> {
    /// A request is over. Without a doubt, its environment is reset.
    pub(super) fn finish(
        &mut self,
        id: EnvironmentId,
        mut machine: V::Machine,
        doubt: Option<Doubt>,
        report: oneshot::Sender<ResetOutcome>,
    ) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if entry.state == State::Leased {
            // Both notes of this lease were ready, and this one came first.
            self.step(id, Step::Start);
        }
        if let Some(doubt) = doubt {
            self.lose(id, machine, &doubt, report);
            return;
        }
        if !self.limits.reset_in_place {
            let _ = report.send(ResetOutcome::Destroyed("reset.in_place is off".to_owned()));
            self.keep(id, machine);
            self.retire(id, Retirement::SingleUse);
            return;
        }
        self.step(id, Step::Finish);
        let verbs = Arc::clone(&self.verbs);
        let page_budget = self.limits.page_budget;
        self.spawn(id, async move {
            let result = verbs.reset(&mut machine, page_budget).await;
            Done::Reset(machine, result, report)
        });
    }

    /// An environment's request wrote so many pages that another one is worth more than
    /// putting this one back.
    pub(super) fn exceed(
        &mut self,
        id: EnvironmentId,
        machine: V::Machine,
        pages: u64,
        report: oneshot::Sender<ResetOutcome>,
    ) {
        let most = self.limits.page_budget;
        let why = format!("it wrote {pages} pages, and reset.page_budget is {most}");
        let _ = report.send(ResetOutcome::Destroyed(why));
        self.keep(id, machine);
        self.retire(id, Retirement::PageBudget);
    }

    /// Whether this reset is one of those that are looked at.
    pub(super) fn is_sampled(&self, id: EnvironmentId) -> bool {
        let unneeded = self.entries.get(&id).is_none_or(|entry| entry.retiring);
        let mut random = [0; 4];
        // Without random bytes, rather one too many.
        let drawn = ids::random(&mut random).map_or(0, |()| u32::from_ne_bytes(random));
        !unneeded && self.limits.verify.samples(drawn)
    }

    /// Compares an environment that was reset with its snapshot. Nobody waits for it who
    /// can have another one.
    pub(super) fn verify(
        &mut self,
        id: EnvironmentId,
        mut machine: V::Machine,
        report: ResetReport,
        sender: oneshot::Sender<ResetOutcome>,
    ) {
        self.step(id, Step::Check);
        let verbs = Arc::clone(&self.verbs);
        self.spawn(id, async move {
            let result = verbs.verify(&mut machine).await;
            Done::Verified(machine, result.map(|()| report), sender)
        });
    }

    /// An environment that served a request is not trusted any more.
    pub(super) fn lose(
        &mut self,
        id: EnvironmentId,
        machine: V::Machine,
        doubt: &Doubt,
        report: oneshot::Sender<ResetOutcome>,
    ) {
        let _ = report.send(ResetOutcome::Destroyed(doubt.words.clone()));
        self.keep(id, machine);
        self.destroy(id, doubt);
    }
}
