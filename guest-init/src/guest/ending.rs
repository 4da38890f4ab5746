//! What is left to do after an answer, where there are extensions.
//!
//! ```text
//!  Working ──runtime and extensions ask for the next──► Reporting (telemetry goes out)
//!     ──► Leaving (SHUTDOWN; the extensions end) ──► Flushing ──► Finished to the agent
//! ```
//!
//! The agent resets the microVM then: the end of a request is the end of everything
//! that an extension keeps in memory. Each step has a bound, and the agent has one
//! for all of them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use snapback_proto::guest::GuestMessage;
use snapback_proto::ids::RequestId;

use super::{Guest, GuestError};
use crate::extensions::events::{self, Reason};
use crate::extensions::state::{Effect, Event};
use crate::runtime_api::state::State;
use crate::telemetry::records::milliseconds;

/// How long telemetry may take to go out.
const TELEMETRY_LIMIT: Duration = Duration::from_millis(500);

/// How long extensions have for their end, as on Lambda.
const SHUTDOWN_LIMIT: Duration = Duration::from_millis(2_000);

/// A request that was answered and is not over.
#[derive(Debug)]
pub(super) struct Ending {
    request: RequestId,
    status: &'static str,
    phase: Phase,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Working,
    Reporting(Instant),
    Leaving(Instant),
    Flushing(Instant),
}

impl Ending {
    /// When the phase ends at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Working => None,
            Phase::Reporting(by) | Phase::Leaving(by) | Phase::Flushing(by) => Some(by),
        }
    }
}

impl Guest {
    /// Whether something is left to do after an answer: then the agent waits for it.
    pub(super) fn has_more(&self) -> bool {
        self.ending.is_some()
    }

    /// There is an answer; called once for each, before it goes out.
    pub(super) fn on_answered(&mut self, status: &'static str, bytes: usize) {
        let (Some(request), true) = (self.request.clone(), self.extensions.are_there()) else {
            return;
        };
        let took = self.invoked.map(|invoked| invoked.elapsed());
        let record = json!({
            "requestId": request.as_str(),
            "status": status,
            "metrics": { "durationMs": took.map(milliseconds), "producedBytes": bytes },
        });
        self.telemetry.platform("platform.runtimeDone", record);
        self.ending = Some(Ending {
            request,
            status,
            phase: Phase::Working,
        });
    }

    /// Takes the next step of an ending, as far as it can be taken.
    pub(super) fn end_when_over(&mut self) -> Result<(), GuestError> {
        while let Some(ending) = &self.ending {
            let late = ending.deadline().is_some_and(|by| by <= Instant::now());
            let phase = ending.phase;
            let next = match phase {
                Phase::Working if self.is_over() => self.report_end()?,
                Phase::Reporting(_) if self.telemetry.is_idle() || late => self.begin_leaving()?,
                Phase::Leaving(_) if !self.extensions.are_leaving() || late => self.flush()?,
                Phase::Flushing(_) if self.telemetry.is_idle() || late => {
                    return self.finish();
                }
                _ => return self.send_rest(phase),
            };
            if let Some(ending) = &mut self.ending {
                ending.phase = next;
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let runtime_is_done = matches!(
            self.state,
            State::Parked | State::RestoreParked | State::Gone
        );
        runtime_is_done && self.extensions.are_settled()
    }

    /// Goes on sending what did not fit in one delivery.
    fn send_rest(&mut self, phase: Phase) -> Result<(), GuestError> {
        match phase {
            Phase::Reporting(_) | Phase::Flushing(_) => self.send_telemetry(true),
            _ => Ok(()),
        }
    }

    fn report_end(&mut self) -> Result<Phase, GuestError> {
        let memory = self.init.as_ref().map(|init| init.memory_mib);
        let took = self.invoked.map(|invoked| invoked.elapsed());
        let billed = took.map(|took| took.as_nanos().div_ceil(1_000_000));
        let billed = billed.and_then(|billed| u64::try_from(billed).ok());
        if let Some(ending) = &self.ending {
            let record = json!({
                "requestId": ending.request.as_str(),
                "status": ending.status,
                "metrics": {
                    "durationMs": took.map(milliseconds),
                    "billedDurationMs": billed,
                    "memorySizeMB": memory,
                },
            });
            self.telemetry.platform("platform.report", record);
        }
        self.flush_telemetry().map(Phase::Reporting)
    }

    fn begin_leaving(&mut self) -> Result<Phase, GuestError> {
        let until = Instant::now() + SHUTDOWN_LIMIT;
        if !self.extensions.any_external() {
            return Ok(Phase::Leaving(until));
        }
        // As on Lambda, the runtime is told, too, if it may have something to do.
        if let Some((_, runtime)) = self.processes.iter().find(|(place, _)| *place == 0) {
            runtime.terminate();
        }
        let reason = match self.state {
            State::Gone => Reason::Failure,
            _ => Reason::Spindown,
        };
        let deadline_ms = milliseconds_since_epoch(SHUTDOWN_LIMIT);
        for place in self.extensions.places() {
            let wants = self
                .extensions
                .get(place)
                .is_some_and(|e| e.wishes.shutdown);
            if wants && self.extensions.happen(place, Event::Shutdown) == Ok(Effect::Deliver) {
                self.tell(place, events::shutdown(reason, deadline_ms))?;
            }
        }
        Ok(Phase::Leaving(until))
    }

    fn flush(&mut self) -> Result<Phase, GuestError> {
        self.flush_telemetry().map(Phase::Flushing)
    }

    fn flush_telemetry(&mut self) -> Result<Instant, GuestError> {
        self.drain_logs()?;
        self.telemetry.end_lines();
        self.send_telemetry(true)?;
        Ok(Instant::now() + TELEMETRY_LIMIT)
    }

    fn finish(&mut self) -> Result<(), GuestError> {
        self.telemetry.give_up();
        self.drain_logs()?;
        if let Some(Ending { request, .. }) = self.ending.take() {
            self.channel
                .queue(&GuestMessage::Finished { request }, Vec::new())?;
        }
        Ok(())
    }
}

fn milliseconds_since_epoch(later: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let then = now.unwrap_or(Duration::ZERO) + later;
    u64::try_from(then.as_millis()).unwrap_or(u64::MAX)
}
