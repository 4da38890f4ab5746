//! What the runtime asks for.

use snapback_proto::frame::MAX_PAYLOAD;
use snapback_proto::guest::{GuestMessage, ReadyPoint};
use snapback_proto::ids::RequestId;

use super::extensions::logs_api;
use super::{Failure, Guest, GuestError};
use crate::http::{Body, Head, Reply};
use crate::runtime_api::connection::{Admission, Call, Heard};
use crate::runtime_api::errors::{FunctionError, Refusal, accepted};
use crate::runtime_api::route::Route;
use crate::runtime_api::state::{Effect, Event, State};
use crate::sys::heap;

/// The media type of an answer that names none.
const OCTETS: &str = "application/octet-stream";

/// Longest body of a call of the Extensions or Telemetry API: an error with its
/// stack trace is the longest.
const MAX_EXTENSION_BODY: usize = 256 * 1024;

/// What an error is called when the runtime does not say.
const UNKNOWN: &str = "Runtime.Unknown";

impl Guest {
    /// Serves what a connection has received.
    pub(super) fn serve_calls(&mut self, slot: u8) -> Result<(), GuestError> {
        loop {
            let (state, request) = (self.state, self.request.as_ref());
            let Some(connection) = self.server.get(slot) else {
                return Ok(());
            };
            match connection.hear(|route, head| admit(state, request, route, head)) {
                Ok(Some(Heard::Call(call))) => self.on_call(slot, call)?,
                Ok(Some(Heard::StreamBegun { content_type })) => {
                    self.begin_stream(slot, content_type)?;
                }
                Ok(Some(Heard::Part(part))) => self.pass_on(slot, part)?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.lose_stream(slot)?;
                    return self.reply(slot, Reply::protocol_error(error));
                }
            }
        }
    }

    fn on_call(&mut self, slot: u8, call: Call) -> Result<(), GuestError> {
        let route = match call.route {
            Ok(route) => route,
            Err(refusal) => return self.reply(slot, refusal.reply()),
        };
        if matches!(call.body, Body::Streamed(_)) {
            return self.end_stream(slot, call.body);
        }
        match route {
            Route::Extension(wanted) => {
                return self.on_extension_call(slot, wanted, &call.head, call.body);
            }
            Route::Telemetry => return self.on_subscription(slot, &call.head, call.body),
            Route::Logs => return self.reply(slot, logs_api()),
            _ => {}
        }
        // The state may have changed while the body was on its way.
        let admitted = admit(self.state, self.request.as_ref(), &route, &call.head)
            .and_then(|_| self.transition(&route));
        let (state, effect) = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => return self.reply(slot, refusal.reply()),
        };
        self.state = state;
        match effect {
            Effect::Park => {
                self.waiter = Some(slot);
                Ok(())
            }
            Effect::ParkReady => {
                self.waiter = Some(slot);
                self.on_initialised();
                Ok(())
            }
            Effect::Deliver => self.deliver(slot),
            _ => self.on_post(slot, &route, effect, call.head, call.body),
        }
    }

    fn transition(&self, route: &Route) -> Result<(State, Effect), Refusal> {
        let event = route.event().ok_or(Refusal::NotFound)?;
        self.state.on(event).ok_or(Refusal::InvalidStateTransition)
    }

    /// A call that brings something. Its sender hears of it last: from then on it
    /// runs, and what it does is work that a reset undoes.
    fn on_post(
        &mut self,
        slot: u8,
        route: &Route,
        effect: Effect,
        head: Head,
        body: Body,
    ) -> Result<(), GuestError> {
        let (error_type, body, reply) = match body {
            Body::Kept(body) => (head.error_type, body, accepted()),
            Body::TooLarge | Body::Discarded | Body::Streamed(_) => {
                let error = FunctionError::response_too_large(MAX_PAYLOAD);
                let refusal = Refusal::TooLarge { cap: MAX_PAYLOAD };
                let json = error.to_json();
                (Some(error.error_type), json, refusal.reply())
            }
        };
        let failed = reply.status() != 202 || !matches!(route, Route::Response(_));
        match effect {
            Effect::Answer if failed => self.answer_error(error_type, body)?,
            Effect::Answer => {
                let content_type = media_type(head.content_type);
                self.answer(content_type, body)?;
            }
            Effect::FailInit => {
                let error_type = error_type.unwrap_or_else(|| UNKNOWN.to_owned());
                self.send_init_failed(error_type, body)?;
            }
            // What is left is restore/error, before or after the request came.
            other => {
                let json = body;
                self.failure = Some(Failure::Restore { error_type, json });
                if other == Effect::FailRequest {
                    self.fail_request()?;
                }
            }
        }
        self.channel.flush()?;
        self.reply(slot, reply)
    }

    /// Tells the agent that the function is ready, once it and its extensions are.
    pub(super) fn report_when_ready(&mut self) -> Result<(), GuestError> {
        let ready = self.state.is_parked() && self.extensions.are_settled();
        if self.reported || !ready {
            return Ok(());
        }
        // What is buffered now would be sent by every microVM of the snapshot.
        if !self.telemetry.is_idle() {
            return self.send_telemetry(true);
        }
        self.reported = true;
        self.telemetry.end_history();
        let at = match self.state {
            State::RestoreParked => ReadyPoint::RestoreNext,
            _ => ReadyPoint::Next,
        };
        self.drain_logs()?;
        // Before the report: once the agent has it, the snapshot may be taken.
        heap::release_free_memory();
        self.channel
            .queue(&GuestMessage::Ready { at }, Vec::new())?;
        Ok(())
    }

    fn answer(&mut self, content_type: String, body: Vec<u8>) -> Result<(), GuestError> {
        self.delivery = None;
        self.drain_logs()?;
        self.on_answered("success", body.len());
        if let Some(request) = self.request.clone() {
            let message = GuestMessage::Response {
                request,
                content_type,
                more: self.has_more(),
            };
            self.channel.queue(&message, body)?;
        }
        Ok(())
    }

    pub(super) fn answer_error(
        &mut self,
        error_type: Option<String>,
        json: Vec<u8>,
    ) -> Result<(), GuestError> {
        self.delivery = None;
        self.drain_logs()?;
        self.on_answered("error", json.len());
        if let Some(request) = self.request.clone() {
            let message = GuestMessage::Failed {
                request,
                error_type,
                more: self.has_more(),
            };
            self.channel.queue(&message, json)?;
        }
        Ok(())
    }

    pub(super) fn fail_init(&mut self, error: &FunctionError) -> Result<(), GuestError> {
        self.send_init_failed(error.error_type.clone(), error.to_json())
    }

    fn send_init_failed(&mut self, error_type: String, json: Vec<u8>) -> Result<(), GuestError> {
        self.reported = true;
        self.drain_logs()?;
        self.channel
            .queue(&GuestMessage::InitFailed { error_type }, json)?;
        Ok(())
    }
}

/// Whether a call makes sense now, and what becomes of its body. The id is looked
/// at before the state, as on Lambda.
fn admit(
    state: State,
    request: Option<&RequestId>,
    route: &Route,
    head: &Head,
) -> Result<Admission, Refusal> {
    if let Some(id) = route.request_id()
        && request.is_none_or(|current| current.as_str() != id)
    {
        return Err(Refusal::InvalidRequestId);
    }
    if route.event().is_none() {
        return Ok(Admission::Keep(MAX_EXTENSION_BODY));
    }
    let streams = head.streams && matches!(route, Route::Response(_));
    let event = if streams {
        Event::StreamStart
    } else {
        route.event().ok_or(Refusal::NotFound)?
    };
    match state.on(event) {
        Some(_) if streams => Ok(Admission::Stream),
        Some(_) => Ok(Admission::Keep(MAX_PAYLOAD)),
        None => Err(Refusal::InvalidStateTransition),
    }
}

/// What the runtime says of its answer, or what is always true.
pub(super) fn media_type(content_type: Option<String>) -> String {
    content_type.unwrap_or_else(|| OCTETS.to_owned())
}
