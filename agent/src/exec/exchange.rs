//! A request over the channel: the event to the guest, its answer back.

use std::time::Duration;

use snapback_proto::guest::{GuestMessage, HostMessage, Invoke};
use snapback_proto::ids::RequestId;

use super::channel::{Channel, ChannelError, Reader, out_of_turn};
use super::deadline::Deadline;
use super::doubt::{Doubt, Poison};
use super::invoke::{Invocation, Outcome};
use super::logs::FunctionLog;
use super::stream::{Answering, Sink};
use super::{answer, wall_clock_ns};

/// How long the hooks of a runtime may take after a restore, as on Lambda; those of a
/// function with a longer timeout, as long as that. The request's own time begins
/// after them.
const HOOKS_LIMIT: Duration = Duration::from_secs(10);

/// How the guest ended a request.
#[derive(Debug)]
pub struct Answered {
    /// With what.
    pub outcome: Outcome,
    /// Extensions still work on it.
    pub more: bool,
    /// The guest is not what a restore should have made of it.
    pub spoilt: bool,
}

impl Answered {
    const fn last(outcome: Outcome) -> Self {
        Self {
            outcome,
            more: false,
            spoilt: false,
        }
    }
}

/// The request, as the guest gets it; its payload is the event.
pub fn message(invocation: &Invocation) -> HostMessage {
    let timeout_ms = u64::try_from(invocation.timeout.as_millis()).unwrap_or(u64::MAX);
    HostMessage::Invoke(Invoke {
        request: invocation.request.clone(),
        deadline_ms: (wall_clock_ns() / 1_000_000).saturating_add(timeout_ms),
        function_arn: invocation.function_arn.clone(),
        trace_id: invocation.trace_id.clone(),
        client_context: invocation.client_context.clone(),
        tenant_id: invocation.tenant_id.clone(),
    })
}

/// Reads until the answer of a guest that has the request.
///
/// # Errors
/// When the channel breaks, or the guest breaks a rule.
pub async fn receive(
    reader: &mut Reader<'_>,
    invocation: &Invocation,
    log: &mut FunctionLog,
    sink: Option<Sink>,
    deadline: &Deadline,
) -> Result<Answered, ChannelError> {
    let request = &invocation.request;
    let mut answering = Answering::new(sink);
    let mut hooks = Hooks::NotHeard;
    loop {
        match reader.receive().await? {
            (GuestMessage::Log { stream }, bytes) => log.push(stream, &bytes),
            (GuestMessage::Holding { request: of }, _)
                if of == *request && hooks == Hooks::NotHeard =>
            {
                hooks = Hooks::Running;
                deadline.restart(HOOKS_LIMIT.max(invocation.timeout));
            }
            (GuestMessage::Delivered { request: of }, _)
                if of == *request && hooks == Hooks::Running =>
            {
                hooks = Hooks::Done;
                deadline.restart(invocation.timeout);
            }
            (
                GuestMessage::StreamStarted {
                    request: of,
                    content_type,
                },
                _,
            ) if of == *request && !answering.has_begun() => answering.start(content_type).await,
            (GuestMessage::StreamChunk, bytes) => {
                if let Some(outcome) = answering.push(bytes).await? {
                    return Ok(Answered::last(outcome));
                }
            }
            (
                GuestMessage::StreamEnded {
                    request: of,
                    error_type,
                    more,
                },
                body,
            ) if of == *request && answering.has_begun() => {
                if let Some(outcome) = answering.end(error_type, &body) {
                    return Ok(Answered {
                        more,
                        ..Answered::last(outcome)
                    });
                }
            }
            (message, body) => {
                return answered(message, body, request, answering.has_begun());
            }
        }
    }
}

/// What is known of the hooks that a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hooks {
    NotHeard,
    Running,
    Done,
}

/// The answers that come whole.
fn answered(
    message: GuestMessage,
    body: Vec<u8>,
    expected: &RequestId,
    begun: bool,
) -> Result<Answered, ChannelError> {
    match message {
        GuestMessage::Response {
            request,
            content_type,
            more,
        } if request == *expected && !begun => Ok(Answered {
            more,
            ..Answered::last(Outcome::Response { body, content_type })
        }),
        GuestMessage::Failed {
            request,
            error_type,
            more,
        } if request == *expected => Ok(Answered {
            more,
            ..Answered::last(failed(error_type, body))
        }),
        GuestMessage::RestoreFailed {
            request,
            error_type,
        } if request == *expected => Ok(Answered {
            spoilt: true,
            ..Answered::last(failed(error_type, body))
        }),
        GuestMessage::RuntimeExited {
            request,
            status,
            out_of_memory,
            more,
        } if request == *expected => {
            let (error_type, body) = answer::runtime_exited(expected, status, out_of_memory);
            let error_type = Some(error_type);
            Ok(Answered {
                more,
                ..Answered::last(Outcome::FunctionError { error_type, body })
            })
        }
        message => Err(out_of_turn(&message, "this request's answer or Log")),
    }
}

fn failed(error_type: Option<String>, body: Vec<u8>) -> Outcome {
    Outcome::FunctionError {
        error_type: error_type.map(answer::error_type),
        body,
    }
}

/// What is left to do after the answer, which the caller does not wait for: in the guest,
/// extensions finish; here, the log is written.
///
/// It holds the channel, and is to be kept until the reset is over: a guest that sees its
/// channel end before its vCPUs stop restarts the machine, which no reset can put back.
#[derive(Debug)]
pub struct Rest {
    channel: Channel,
    request: RequestId,
    log: FunctionLog,
    /// How long the guest's part may take, if there is one.
    limit: Option<Duration>,
}

impl Rest {
    /// What is left of a request that was answered. With a limit, the guest goes on.
    #[must_use]
    pub const fn new(
        channel: Channel,
        request: RequestId,
        log: FunctionLog,
        limit: Option<Duration>,
    ) -> Self {
        Self {
            channel,
            request,
            log,
            limit,
        }
    }

    /// Waits for the guest's word that nothing is left, if it has anything left, and
    /// writes the log.
    ///
    /// # Errors
    /// When it does not come in time, or something else does.
    pub async fn finish(&mut self) -> Result<(), Doubt> {
        let Some(limit) = self.limit else {
            self.log.finish();
            return Ok(());
        };
        let (mut reader, _writer) = self.channel.split();
        let (request, log) = (&self.request, &mut self.log);
        let finished = async {
            loop {
                match reader.receive().await {
                    Ok((GuestMessage::Log { stream }, bytes)) => log.push(stream, &bytes),
                    Ok((GuestMessage::Finished { request: of }, _)) if of == *request => {
                        return Ok(());
                    }
                    Ok((message, _)) => {
                        let words = out_of_turn(&message, "Finished or Log").to_string();
                        return Err(Doubt::new(Poison::Channel, words));
                    }
                    Err(error) => {
                        let words = format!("the invocation channel broke: {error}");
                        return Err(Doubt::new(Poison::Channel, words));
                    }
                }
            }
        };
        let finished = tokio::time::timeout(limit, finished).await;
        self.log.finish();
        finished.unwrap_or_else(|_| {
            let words = format!("the extensions did not finish within {limit:?}");
            Err(Doubt::new(Poison::Extensions, words))
        })
    }
}
