//! Invoke: one request in a restored microVM.
//!
//! ```text
//!  (Resume, Invoke) Run ─► Resumed │ Log* ─► answer          │ Log* ─► Finished
//!      nobody has looked at the    │  the request runs:       │   extensions finish,
//!      request yet: an error       │  every end is an answer  │   if there are any
//!                                  │  in Lambda's words       │
//! ```
//!
//! In parentheses what is in the channel before the guest runs: it finds all that it needs
//! when it wakes up. What the caller does not wait for is [`Rest`].

use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use snapback_proto::control::{Command, Reply, Run};
use snapback_proto::guest::LogFormat;
use snapback_proto::ids::RequestId;

use super::channel::{Channel, ChannelError, Outgoing};
use super::deadline::Deadline;
use super::doubt::{Doubt, Poison};
use super::exchange::{self, Answered, Rest};
use super::logs::FunctionLog;
use super::restore::RestoreError;
use super::stream::Sink;
use super::{Environment, Executor, answer, elapsed_ns, resume};
use crate::ids::EnvironmentId;
use crate::process::{Cause, CommandError, Fate};

/// How long after the channel broke the microVM's end is waited for, so that the
/// answer can say why.
const CAUSE_WAIT: Duration = Duration::from_millis(200);

/// What extensions may use beyond the function's timeout: Lambda's two seconds for
/// a shutdown, and some for the way.
const EXTENSION_GRACE: Duration = Duration::from_millis(2_500);

/// One request.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// Its id.
    pub request: RequestId,
    /// The function's ARN.
    pub function_arn: String,
    /// X-Ray trace id, passed through.
    pub trace_id: Option<String>,
    /// Decoded client context.
    pub client_context: Option<String>,
    /// Tenant, passed through.
    pub tenant_id: Option<String>,
    /// The event.
    pub payload: Vec<u8>,
    /// The function's timeout.
    pub timeout: Duration,
    /// The function's memory, in MiB.
    pub memory_mib: u32,
    /// What the platform's log lines look like.
    pub log_format: LogFormat,
}

/// How a request ended that reached the function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The function answered.
    Response {
        /// The answer.
        body: Vec<u8>,
        /// Its media type.
        content_type: String,
    },
    /// The function, its runtime or its microVM failed.
    FunctionError {
        /// For example `Runtime.ExitError`, when known.
        error_type: Option<String>,
        /// Lambda's error JSON.
        body: Vec<u8>,
    },
}

/// A request that reached the function.
#[derive(Debug)]
pub struct Completed {
    /// How it ended.
    pub outcome: Outcome,
    /// The last bytes of its output.
    pub log_tail: Vec<u8>,
    /// What was measured.
    pub facts: InvokeFacts,
    /// Why the microVM cannot be reset, and must be destroyed, when that is so.
    pub doubt: Option<Doubt>,
    /// What is to be done before the reset, and not before the answer goes out.
    pub rest: Rest,
}

/// What was measured of a request, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InvokeFacts {
    /// The restore generation that it ran in.
    pub generation: u64,
    /// In the VMM: from the arrival of the command that let the guest run to the moment
    /// at which its first vCPU entered it.
    pub enter_ns: u64,
    /// From the departure of that command to the guest's confirmation.
    pub resume_ns: u64,
    /// From there to the answer's arrival.
    pub function_ns: u64,
}

/// A request did not reach the function. The microVM must be destroyed.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// The kernel gave no random bytes for the guest.
    #[error("{environment}: there is no entropy for the guest")]
    Entropy {
        /// Which environment.
        environment: EnvironmentId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The guest does not run.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The snapshot cannot be loaded.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The guest did not confirm entropy and clock.
    #[error("{environment}: the restored guest did not confirm entropy and clock")]
    Unconfirmed {
        /// Which environment.
        environment: EnvironmentId,
        /// What came instead.
        #[source]
        source: ChannelError,
    },
    /// Nothing was confirmed in time.
    #[error("{environment}: the restored guest did not confirm entropy and clock in {limit:?}")]
    Timeout {
        /// Which environment.
        environment: EnvironmentId,
        /// The bound.
        limit: Duration,
    },
    /// The microVM ended before the request reached it.
    #[error("{environment}: the microVM ended: {cause}")]
    Ended {
        /// Which environment.
        environment: EnvironmentId,
        /// Why.
        cause: Cause,
    },
}

/// What can end a running request.
enum End {
    Answered(Answered),
    Broken(ChannelError),
    /// After this limit.
    TimedOut(Duration),
    Vmm(Cause),
}

impl End {
    /// Why the microVM cannot be reset after this, when that is so.
    fn doubt(&self, fate: &Fate) -> Option<Doubt> {
        match self {
            Self::TimedOut(_) => Some(Doubt::new(Poison::Timeout, "Sandbox.Timedout")),
            Self::Broken(error) => Some(Doubt::new(
                Poison::Channel,
                format!("the invocation channel broke: {error}"),
            )),
            Self::Vmm(cause) => Some(Doubt::new(
                Poison::of(cause),
                format!("the microVM ended: {cause}"),
            )),
            Self::Answered(answered) => match fate.known() {
                Some(cause) => Some(Doubt::new(
                    Poison::of(&cause),
                    format!("the microVM ended after its answer: {cause}"),
                )),
                None => answered.spoilt.then(|| {
                    let words = "a hook failed after the restore";
                    let words = match &answered.outcome {
                        Outcome::FunctionError {
                            error_type: Some(error_type),
                            ..
                        } => format!("{words}: {error_type}"),
                        _ => words.to_owned(),
                    };
                    Doubt::new(Poison::Spoilt, words)
                }),
            },
        }
    }
}

/// An end of the microVM breaks the channel, too, and explains more.
async fn explained(error: InvokeError, fate: &Fate) -> InvokeError {
    let InvokeError::Unconfirmed { environment, .. } = error else {
        return error;
    };
    match tokio::time::timeout(CAUSE_WAIT, fate.sealed()).await {
        Ok(cause) => InvokeError::Ended { environment, cause },
        Err(_) => error,
    }
}

impl Executor {
    /// Runs one request in a microVM that is restored (or reset) and untouched. An
    /// answer that comes in pieces goes to the sink, if there is one; the outcome has
    /// no body then. With `barrier`, processors forget their branch predictions first.
    ///
    /// # Errors
    /// When the request did not reach the function. What happens later is in
    /// [`Completed`].
    pub async fn invoke(
        &self,
        environment: &mut Environment,
        invocation: &Invocation,
        sink: Option<Sink>,
        barrier: bool,
    ) -> Result<Completed, InvokeError> {
        let id = environment.id();
        let generation = self.next_generation();
        let resume = resume::message(generation).map_err(|source| InvokeError::Entropy {
            environment: id,
            source,
        })?;
        let unconfirmed = |source| InvokeError::Unconfirmed {
            environment: id,
            source,
        };
        let messages = [resume, exchange::message(invocation)];
        let mut outgoing = Outgoing::new(&messages, &invocation.payload).map_err(unconfirmed)?;
        let loaded = Channel::loaded(&mut outgoing);
        let (mut channel, theirs) = loaded.map_err(|source| unconfirmed(source.into()))?;
        let (mut reader, mut writer) = channel.split();
        let fate = environment.process.fate().clone();
        let mut log = FunctionLog::new(id, &invocation.request);
        log.begin(invocation);
        let limit = Duration::from_millis(self.timeouts.resume_ms);
        let start = Instant::now();
        let resumed = tokio::select! {
            biased;
            resumed = async {
                let confirmed = resume::confirmed(id, &mut reader, generation, &mut log);
                let ran = self.run(environment, theirs, barrier);
                both(ran, confirmed).await
            } => resumed,
            error = writer.keep_sending(&mut outgoing) => Err(unconfirmed(error)),
            () = tokio::time::sleep(limit) => {
                Err(InvokeError::Timeout { environment: id, limit })
            }
            cause = fate.sealed() => Err(InvokeError::Ended { environment: id, cause }),
        };
        let fate = &fate;
        let enter_ns = match resumed {
            Ok(entered) => entered,
            Err(error) => return Err(explained(error, fate).await),
        };
        let resume_ns = elapsed_ns(start);
        if let Some(watcher) = &mut environment.watcher {
            watcher.look();
        }

        let start = Instant::now();
        let deadline = Deadline::new(invocation.timeout);
        let end = tokio::select! {
            biased;
            end = exchange::receive(&mut reader, invocation, &mut log, sink, &deadline) => match end {
                Ok(answered) => End::Answered(answered),
                Err(error) => End::Broken(error),
            },
            // A guest may write before it has read everything.
            error = writer.keep_sending(&mut outgoing) => End::Broken(error),
            () = deadline.passed() => End::TimedOut(deadline.limit()),
            cause = fate.sealed() => End::Vmm(cause),
        };
        let facts = InvokeFacts {
            generation,
            enter_ns,
            resume_ns,
            function_ns: elapsed_ns(start),
        };
        let end = match end {
            // The microVM's end breaks the channel, too, and explains more.
            End::Broken(error) => tokio::time::timeout(CAUSE_WAIT, fate.sealed())
                .await
                .map_or(End::Broken(error), End::Vmm),
            end => end,
        };
        let more = matches!(&end, End::Answered(answered) if answered.more);
        let doubt = end.doubt(fate);
        if let Some(mut watcher) = environment.watcher.take()
            && doubt.is_none()
        {
            watcher.look();
            let snapshot = Arc::clone(environment.snapshot());
            drop(tokio::task::spawn_blocking(move || {
                snapshot.learn_writes(watcher)
            }));
        }
        if doubt.is_none()
            && let Some(first_run) = environment.first_run.take()
        {
            // Nobody waits for it; a bounded file.
            drop(tokio::task::spawn_blocking(move || first_run.finish()));
        }
        let outcome = conclude(end, invocation);
        log.end(invocation, facts.function_ns, &outcome);
        let log_tail = log.tail();
        let limit = invocation.timeout.saturating_add(EXTENSION_GRACE);
        let limit = (doubt.is_none() && more).then_some(limit);
        let rest = Rest::new(channel, invocation.request.clone(), log, limit);
        Ok(Completed {
            outcome,
            log_tail,
            facts,
            doubt,
            rest,
        })
    }

    /// Lets the guest run, after its snapshot was brought if that is still to be done.
    /// Returns how long the VMM took to enter it.
    async fn run(
        &self,
        environment: &mut Environment,
        theirs: OwnedFd,
        barrier: bool,
    ) -> Result<u64, InvokeError> {
        let start = Instant::now();
        let run = Run {
            hub: false,
            barrier,
        };
        let command = Command::Run(run);
        let reply = match self.restore(environment, theirs.as_fd(), run).await? {
            Some(reply) => {
                environment.restore_ns = elapsed_ns(start);
                reply
            }
            None => {
                let (fds, limit) = ([theirs.as_fd()], self.timeouts.command());
                let control = &mut environment.process.control;
                control.command(&command, &fds, limit).await?.reply
            }
        };
        match reply {
            Reply::Running { entered_ns } => Ok(entered_ns),
            _ => Err(environment.process.control.unexpected(&command).into()),
        }
    }
}

/// Waits for the reply to the command and for the guest's word. Without the first the
/// second says nothing; what the VMM says explains more than a channel that broke.
async fn both(
    ran: impl Future<Output = Result<u64, InvokeError>>,
    confirmed: impl Future<Output = Result<(), InvokeError>>,
) -> Result<u64, InvokeError> {
    let (mut ran, mut confirmed) = (pin!(ran), pin!(confirmed));
    tokio::select! {
        biased;
        entered = &mut ran => {
            let entered = entered?;
            confirmed.await?;
            Ok(entered)
        }
        confirmed = &mut confirmed => {
            let entered = ran.await?;
            confirmed?;
            Ok(entered)
        }
    }
}

fn conclude(end: End, invocation: &Invocation) -> Outcome {
    let request = &invocation.request;
    match end {
        End::Answered(answered) => answered.outcome,
        End::TimedOut(limit) => Outcome::FunctionError {
            error_type: Some("Sandbox.Timedout".to_owned()),
            body: answer::timed_out(request, limit),
        },
        End::Broken(error) => {
            let what = format!("the invocation channel broke: {error}");
            Outcome::FunctionError {
                error_type: Some(answer::SANDBOX_FAILURE.to_owned()),
                body: answer::sandbox_failure(request, &what),
            }
        }
        End::Vmm(cause) => Outcome::FunctionError {
            error_type: Some(answer::ended_type(&cause).to_owned()),
            body: answer::sandbox_ended(request, &cause),
        },
    }
}
