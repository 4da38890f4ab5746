//! One request through the node.
//!
//! It runs in a task of its own: a caller that goes away does not stop it. The
//! answer is on its way before the reset has begun, and before the function's
//! extensions have finished.

use std::sync::Arc;
use std::time::{Duration, Instant};

use snapback_proto::ids::{FunctionName, RequestId};

use tokio::sync::oneshot;

use super::Node;
use super::error::InvokeFailure;
use super::records::{RecordStatus, RequestRecord};
use crate::admission::Ticket;
use crate::config::Fill;
use crate::exec::{
    Completed, Doubt, Environment, Invocation, InvokeFacts, Outcome, Poison, Rest, Sink, elapsed_ns,
};
use crate::lease::{Lease, Principal, ResetOutcome};
use crate::snapshots::{Disks, Snapshot, SnapshotError};
use crate::store::Function;
use crate::telemetry::RequestEnd;

/// A request, as a caller makes it.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Its id.
    pub request: RequestId,
    /// Which function.
    pub function: FunctionName,
    /// The event: JSON.
    pub payload: Vec<u8>,
    /// X-Ray trace id, passed through.
    pub trace_id: Option<String>,
    /// Decoded client context, passed through.
    pub client_context: Option<String>,
    /// Tenant, passed through.
    pub tenant_id: Option<String>,
}

/// A request's answer.
#[derive(Debug)]
pub struct Answer {
    /// What the function said, or Lambda's words for why it did not.
    pub outcome: Outcome,
    /// The last bytes of its output.
    pub log_tail: Vec<u8>,
}

/// What is known of a request before it runs.
struct Course {
    request: RequestId,
    function: Arc<Function>,
    start: Instant,
    queue_ns: u64,
    lease_ns: u64,
}

impl Node {
    /// Runs a request and waits for its answer. One that comes in pieces goes to the
    /// sink, if there is one; the answer has no body then.
    ///
    /// # Errors
    /// When it did not reach the function.
    pub async fn invoke(
        self: &Arc<Self>,
        ask: Ask,
        sink: Option<Sink>,
    ) -> Result<Answer, InvokeFailure> {
        let start = Instant::now();
        let (function, ticket) = self.admit(&ask).await?;
        let (reply, answer) = oneshot::channel();
        let run = Arc::clone(self).run(ask, sink, function, ticket, start, reply);
        let task = tokio::spawn(run);
        match answer.await {
            Ok(answer) => answer,
            // The task ended without a word.
            Err(_) => Err(task
                .await
                .map_or_else(InvokeFailure::CutOff, |()| draining())),
        }
    }

    /// Admits a request and runs it without anybody waiting for its answer.
    ///
    /// # Errors
    /// When it is not admitted.
    pub async fn invoke_event(self: &Arc<Self>, ask: Ask) -> Result<(), InvokeFailure> {
        let start = Instant::now();
        let (function, ticket) = self.admit(&ask).await?;
        let node = Arc::clone(self);
        tokio::spawn(async move {
            let request = ask.request.clone();
            let (reply, answer) = oneshot::channel();
            node.run(ask, None, function, ticket, start, reply).await;
            if let Ok(Err(error)) = answer.await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%request, error, "an event was lost");
            }
        });
        Ok(())
    }

    async fn admit(&self, ask: &Ask) -> Result<(Arc<Function>, Ticket), InvokeFailure> {
        let function = self
            .function(&ask.function)
            .ok_or_else(|| InvokeFailure::NotFound(ask.function.clone()));
        let admitted = async { Ok((function?, self.admission.enter().await?)) };
        let admitted: Result<_, InvokeFailure> = admitted.await;
        if admitted.is_err() {
            self.metrics.request(RequestEnd::Refused);
        }
        admitted
    }

    /// Runs a request, answers, and gives the environment back when nothing is left
    /// to do in it.
    async fn run(
        self: Arc<Self>,
        ask: Ask,
        sink: Option<Sink>,
        function: Arc<Function>,
        ticket: Ticket,
        start: Instant,
        reply: oneshot::Sender<Result<Answer, InvokeFailure>>,
    ) {
        let queue_ns = elapsed_ns(start);
        let leasing = Instant::now();
        let principal = Principal::of(ask.tenant_id.as_deref());
        let mut lease = match self.lease(&function, principal).await {
            Ok(lease) => lease,
            Err(failure) => {
                self.metrics.request(RequestEnd::NotRun);
                let _ = reply.send(Err(failure));
                return;
            }
        };
        let course = Course {
            request: ask.request.clone(),
            function: Arc::clone(&function),
            start,
            queue_ns,
            lease_ns: elapsed_ns(leasing),
        };
        let invocation = invocation(ask, &function);
        let barrier = lease.needs_barrier();
        let result = tokio::select! {
            result = self.executor.invoke(lease.start(), &invocation, sink, barrier) => Some(result),
            () = self.stop.cancelled() => None,
        };
        // Nobody may be waiting any more: that changes nothing.
        match result {
            Some(Ok(completed)) => {
                self.note(&course, &mut lease, &completed);
                let Completed {
                    outcome,
                    log_tail,
                    mut doubt,
                    mut rest,
                    ..
                } = completed;
                let _ = reply.send(Ok(Answer { outcome, log_tail }));
                // Whoever waits for the answer goes first.
                tokio::task::yield_now().await;
                let finished = tokio::select! {
                    biased;
                    finished = rest.finish() => finished,
                    () = self.stop.cancelled() => {
                        Err(Doubt::new(Poison::GivenUp, "the node shut down"))
                    }
                };
                doubt = doubt.or(finished.err());
                let name = &course.function.config.name;
                self.release(course.request, name, lease, doubt, rest);
            }
            Some(Err(source)) => {
                self.metrics.request(RequestEnd::NotRun);
                drop(lease.finish(Some(Doubt::from(&source))));
                let function = function.config.name.clone();
                let _ = reply.send(Err(InvokeFailure::Invoke { function, source }));
            }
            None => {
                self.metrics.request(RequestEnd::NotRun);
                let _ = reply.send(Err(draining()));
            }
        }
        drop(ticket);
    }

    async fn lease(
        self: &Arc<Self>,
        function: &Arc<Function>,
        principal: Principal,
    ) -> Result<Lease<Environment>, InvokeFailure> {
        let name = || function.config.name.clone();
        let snapshot = self.current_snapshot(function).await?;
        let patience = Duration::from_millis(self.config.timeouts.queue_ms);
        match tokio::time::timeout(patience, self.pool.acquire(snapshot, principal)).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(source)) => Err(InvokeFailure::Lease {
                function: name(),
                source,
            }),
            Err(_) => Err(InvokeFailure::TooLate { function: name() }),
        }
    }

    /// The snapshot that a function has now: it may have got another one since the request
    /// came.
    async fn current_snapshot(
        self: &Arc<Self>,
        function: &Arc<Function>,
    ) -> Result<Arc<Snapshot>, InvokeFailure> {
        let name = &function.config.name;
        let now = || self.function(name).unwrap_or_else(|| Arc::clone(function));
        let first = now();
        match self.snapshot(&first).await {
            // It was replaced a moment ago.
            Err(_) if now().snapshot != first.snapshot => self.snapshot(&now()).await,
            snapshot => snapshot,
        }
    }

    async fn snapshot(
        self: &Arc<Self>,
        function: &Function,
    ) -> Result<Arc<Snapshot>, InvokeFailure> {
        if let Some(snapshot) = self.catalogue.loaded(&function.snapshot) {
            return Ok(snapshot);
        }
        self.load(function).await
    }

    /// Loads a snapshot the first time it is needed, on a thread of its own: the
    /// node goes on with it even when this request gives up.
    async fn load(self: &Arc<Self>, function: &Function) -> Result<Arc<Snapshot>, InvokeFailure> {
        let name = function.config.name.clone();
        let node = Arc::clone(self);
        let function = function.clone();
        let loading = tokio::task::spawn_blocking(move || {
            let disks = node.disks(&function)?;
            let snapshot = node.catalogue.load(&function.snapshot, &disks)?;
            if node.config.pager.fill == Fill::Eager {
                snapshot.complete()?;
            }
            Ok(snapshot)
        });
        let limit = Duration::from_millis(self.config.timeouts.init_ms);
        match tokio::time::timeout(limit, loading).await {
            Ok(Ok(Ok(snapshot))) => Ok(snapshot),
            Ok(Ok(Err(source))) => Err(InvokeFailure::Snapshot {
                function: name,
                source,
            }),
            Ok(Err(error)) => Err(InvokeFailure::CutOff(error)),
            Err(_) => Err(InvokeFailure::TooLate { function: name }),
        }
    }

    /// A function's disks with the hashes that their files have now.
    pub(super) fn disks(&self, function: &Function) -> Result<Disks, SnapshotError> {
        // A runtime that is no longer known has no root file system: the error
        // names the file.
        let root_fs = function.config.root_fs().unwrap_or("unknown");
        let root_fs = self.asset(&format!("rootfs/{root_fs}.erofs"));
        let digest = |path: &std::path::Path| {
            self.digests.of(path).map_err(|source| SnapshotError::Io {
                operation: "reading",
                path: path.to_owned(),
                source,
            })
        };
        let code = self.images.path(&function.code);
        Ok(Disks {
            root_fs: (root_fs.clone(), digest(&root_fs)?),
            code: (code.clone(), digest(&code)?),
        })
    }

    /// Notes the figures of a request that has been answered.
    fn note(&self, course: &Course, lease: &mut Lease<Environment>, completed: &Completed) {
        let facts: InvokeFacts = completed.facts;
        let (status, error_type) = match &completed.outcome {
            Outcome::Response { .. } => {
                self.metrics.request(RequestEnd::Success);
                (RecordStatus::Success, None)
            }
            Outcome::FunctionError { error_type, .. } => {
                self.metrics.request(RequestEnd::FunctionError);
                (RecordStatus::FunctionError, error_type.clone())
            }
        };
        self.records.add(RequestRecord {
            request_id: course.request.clone(),
            function: course.function.config.name.to_string(),
            environment: lease.id().to_string(),
            status,
            error_type,
            fresh: lease.is_fresh(),
            blank_pool: lease.blank_pool(),
            generation: facts.generation,
            queue_ns: course.queue_ns,
            lease_ns: course.lease_ns,
            restore_ns: lease.start().restore_ns(),
            enter_ns: facts.enter_ns,
            userfaults: lease.start().userfaults(),
            resume_ns: facts.resume_ns,
            function_ns: facts.function_ns,
            total_ns: elapsed_ns(course.start),
            reset: None,
            dirty_pages: None,
            verified: false,
            destroyed: None,
            finished: false,
        });
    }

    /// Gives the environment back, and notes what its reset cost. The rest of the request
    /// is kept as long.
    fn release(
        self: &Arc<Self>,
        request: RequestId,
        function: &FunctionName,
        lease: Lease<Environment>,
        doubt: Option<Doubt>,
        rest: Rest,
    ) {
        let outcome = lease.finish(doubt);
        if let Some(function) = self.function(function) {
            self.gather_when_known(&function);
        }
        let records = Arc::clone(&self.records);
        // Bounded by the reset's own bound: the pool answers or drops the sender.
        tokio::spawn(async move {
            let outcome = outcome.await;
            drop(rest);
            records.finish(&request, |record| match outcome {
                Ok(ResetOutcome::Reset { report, verified }) => {
                    record.verified = verified;
                    record.reset = Some(report);
                    record.dirty_pages = Some(report.pages);
                }
                Ok(ResetOutcome::Destroyed(why)) => record.destroyed = Some(why),
                Err(_) => record.destroyed = Some("the node shut down".to_owned()),
            });
        });
    }
}

fn invocation(ask: Ask, function: &Function) -> Invocation {
    let config = &function.config;
    Invocation {
        request: ask.request,
        function_arn: config.arn(),
        trace_id: ask.trace_id,
        client_context: ask.client_context,
        tenant_id: ask.tenant_id,
        payload: ask.payload,
        timeout: config.timeout(),
        memory_mib: config.memory_mb,
        log_format: config.logging.format.into(),
    }
}

const fn draining() -> InvokeFailure {
    InvokeFailure::Refused(crate::admission::Refused::Draining)
}
