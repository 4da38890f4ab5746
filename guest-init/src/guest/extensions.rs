//! What extensions ask for, and what they are told.

use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::json;
use snapback_proto::guest::Invoke;

use super::{Guest, GuestError};
use crate::extensions::events;
use crate::extensions::state::{Effect, Event};
use crate::http::{Body, Head, Reply};
use crate::identity::uuid;
use crate::runtime_api::errors::{FunctionError, Refusal, accepted};
use crate::runtime_api::route::ExtensionCall;
use crate::runtime_api::state::State;
use crate::telemetry::records::milliseconds;
use crate::telemetry::subscription::Subscription;

/// What the events of the initialisation say of it.
const INIT_TYPE: &str = "snap-start";

impl Guest {
    pub(super) fn on_extension_call(
        &mut self,
        slot: u8,
        call: ExtensionCall,
        head: &Head,
        body: Body,
    ) -> Result<(), GuestError> {
        let Body::Kept(body) = body else {
            return self.reply(slot, Refusal::InvalidFormat.reply());
        };
        let outcome = match call {
            ExtensionCall::Register => self.register_extension(head, &body),
            ExtensionCall::Next => match self.next_of(slot, head) {
                // It is answered when there is something to say.
                Ok(None) => return Ok(()),
                Ok(Some(reply)) => Ok(reply),
                Err(refusal) => Err(refusal),
            },
            ExtensionCall::InitError => return self.on_extension_error(slot, head, true),
            ExtensionCall::ExitError => return self.on_extension_error(slot, head, false),
        };
        self.reply(slot, outcome.unwrap_or_else(Refusal::reply))
    }

    fn register_extension(&mut self, head: &Head, body: &[u8]) -> Result<Reply, Refusal> {
        if self.state != State::Initialising {
            self.extensions.close();
        }
        let id = random_uuid();
        let name = head.extension_name.as_deref();
        let place = self.extensions.register(name, id.clone(), body)?;
        if let Some(extension) = self.extensions.get(place) {
            let mut wishes = Vec::new();
            wishes.extend(extension.wishes.invoke.then_some("INVOKE"));
            wishes.extend(extension.wishes.shutdown.then_some("SHUTDOWN"));
            let record = json!({
                "name": extension.name, "state": "Registered", "events": wishes,
            });
            self.telemetry.platform("platform.extension", record);
        }
        let answer = self.init.as_ref().map(events::registered);
        Ok(Reply::json(200, answer.unwrap_or_default()).header("Lambda-Extension-Identifier", &id))
    }

    fn next_of(&mut self, slot: u8, head: &Head) -> Result<Option<Reply>, Refusal> {
        let place = self.extensions.identify(head.extension_id.as_deref())?;
        let effect = self.extensions.happen(place, Event::Next)?;
        if effect == Effect::Deliver {
            return Ok(Some(event_reply(self.invoke_event.clone())));
        }
        if let Some(extension) = self.extensions.get_mut(place) {
            extension.waiter = Some(slot);
        }
        Ok(None)
    }

    /// It says that it cannot go on.
    fn on_extension_error(&mut self, slot: u8, head: &Head, init: bool) -> Result<(), GuestError> {
        let (event, error_type) = if init {
            (Event::InitError, "Extension.InitError")
        } else {
            (Event::ExitError, "Extension.ExitError")
        };
        let happened = self
            .extensions
            .identify(head.extension_id.as_deref())
            .and_then(|place| {
                let reason = head.error_type.clone().ok_or(Refusal::MissingErrorType)?;
                Ok((self.extensions.happen(place, event)?, reason))
            });
        match happened {
            Ok((effect, reason)) => {
                if effect == Effect::Fail {
                    self.fail_extension(error_type, reason)?;
                }
                self.reply(slot, accepted())
            }
            Err(refusal) => self.reply(slot, refusal.reply()),
        }
    }

    /// The connection that one waited on is gone.
    pub(super) fn lose_extension(&mut self, slot: u8) {
        if let Some(place) = self.extensions.waiting_on(slot) {
            if let Some(extension) = self.extensions.get_mut(place) {
                extension.waiter = None;
            }
            // It may have been told something already: then nothing is lost.
            let _ = self.extensions.happen(place, Event::Hangup);
        }
    }

    /// Tells every extension that wants to hear of it that there is a request.
    pub(super) fn tell_extensions(&mut self, invoke: &Invoke) -> Result<(), GuestError> {
        let record = json!({
            "requestId": invoke.request.as_str(),
            "version": self.init.as_ref().map(|init| init.version.as_str()),
        });
        self.telemetry.platform("platform.start", record);
        if !self.extensions.are_there() {
            return Ok(());
        }
        self.invoke_event = events::invoke(invoke);
        for place in self.extensions.places() {
            let wants = self.extensions.get(place).is_some_and(|e| e.wishes.invoke);
            if wants && self.extensions.happen(place, Event::Invoke) == Ok(Effect::Deliver) {
                self.tell(place, self.invoke_event.clone())?;
            }
        }
        Ok(())
    }

    /// Answers an extension's waiting call.
    pub(super) fn tell(&mut self, place: usize, event: Vec<u8>) -> Result<(), GuestError> {
        let extension = self.extensions.get_mut(place);
        match extension.and_then(|extension| extension.waiter.take()) {
            Some(slot) => self.reply(slot, event_reply(event)),
            None => Ok(()),
        }
    }

    pub(super) fn on_subscription(
        &mut self,
        slot: u8,
        head: &Head,
        body: Body,
    ) -> Result<(), GuestError> {
        let outcome = self.subscribe(head, &body);
        self.reply(slot, outcome.unwrap_or_else(Refusal::reply))
    }

    fn subscribe(&mut self, head: &Head, body: &Body) -> Result<Reply, Refusal> {
        let place = self.extensions.identify(head.extension_id.as_deref())?;
        // Afterwards it would be another one in each microVM of the snapshot.
        if self.reported {
            let error = FunctionError::new(
                "Telemetry.SubscriptionClosed",
                "Subscribe before the function is ready",
            );
            return Ok(Reply::json(403, error.to_json()));
        }
        let Body::Kept(body) = body else {
            return Err(Refusal::InvalidFormat);
        };
        let own_port = self.server.address().map_or(0, |address| address.port());
        let subscription = Subscription::parse(body, own_port)?;
        let kinds: Vec<String> = subscription
            .kinds
            .iter()
            .map(|kind| format!("{kind:?}").to_lowercase())
            .collect();
        let name = self.extensions.get(place).map(|e| e.name.clone());
        self.telemetry.subscribe(place, subscription);
        let record = json!({ "name": name, "state": "Subscribed", "types": kinds });
        self.telemetry
            .platform("platform.telemetrySubscription", record);
        Ok(Reply::json(200, b"\"OK\"".to_vec()))
    }

    /// The runtime is about to be started.
    pub(super) fn on_init_start(&mut self) {
        let init = self.init.as_ref();
        let record = json!({
            "initializationType": INIT_TYPE,
            "phase": "init",
            "functionName": init.map(|init| init.function.as_str()),
            "functionVersion": init.map(|init| init.version.as_str()),
        });
        self.telemetry.platform("platform.initStart", record);
    }

    /// The runtime has reached its ready point.
    pub(super) fn on_initialised(&mut self) {
        self.extensions.close();
        let record = json!({
            "initializationType": INIT_TYPE, "phase": "init", "status": "success",
        });
        self.telemetry.platform("platform.initRuntimeDone", record);
        let took = self.started.map(|started| started.elapsed());
        let record = json!({
            "initializationType": INIT_TYPE,
            "phase": "init",
            "status": "success",
            "metrics": { "durationMs": took.map(milliseconds) },
        });
        self.telemetry.platform("platform.initReport", record);
    }
}

fn event_reply(event: Vec<u8>) -> Reply {
    Reply::json(200, event).header("Lambda-Extension-Event-Identifier", &random_uuid())
}

/// What the Logs API answers where it is not there: the Telemetry API took its place.
pub(super) fn logs_api() -> Reply {
    let error = FunctionError::new("Logs.NotSupported", "Logs API is not supported");
    Reply::json(202, error.to_json())
}

fn random_uuid() -> String {
    let mut bytes = [0_u8; 16];
    // The generator is up when PID 1 runs; a short answer does not happen below 256.
    let _ = getrandom(&mut bytes, GetRandomFlags::empty());
    uuid(&bytes)
}
