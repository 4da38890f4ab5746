//! What the end of a process means.

use std::time::{Duration, Instant};

use snapback_proto::guest::{ExitStatus, GuestMessage};
use snapback_proto::ids::RequestId;

use super::{Failure, Guest, GuestError};
use crate::extensions::state as extension;
use crate::poller::Token;
use crate::runtime_api::errors::{FunctionError, ending};
use crate::runtime_api::server::MAX_CONNECTIONS;
use crate::runtime_api::state::{Effect, Event, State};

/// Longest wait for the rest of a call whose process has ended. The kernel delivers it
/// and the connection's end without delay; only a child that keeps the connection
/// makes it as long as this.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);

impl Guest {
    pub(super) fn on_process_ended(&mut self, place: u8) -> Result<(), GuestError> {
        if let Some((_, process)) = self.processes.iter().find(|(of, _)| *of == place) {
            let ended = process
                .try_wait()
                .map_err(GuestError::during("reap a process"))?;
            self.ended.extend(ended.map(|status| (place, status)));
        }
        self.forget_ended_processes();
        Ok(())
    }

    pub(super) fn on_orphans(&mut self) -> Result<(), GuestError> {
        if let Some(orphans) = &self.orphans {
            let (processes, ended) = (&self.processes, &mut self.ended);
            orphans
                .reap(|pid, status| {
                    let ours = processes.iter().find(|(_, process)| process.pid() == pid);
                    ended.extend(ours.map(|(place, _)| (*place, status)));
                })
                .map_err(GuestError::during("reap orphans"))?;
        }
        self.forget_ended_processes();
        Ok(())
    }

    /// Their process ids are free for others now.
    fn forget_ended_processes(&mut self) {
        let ended = &self.ended;
        self.processes
            .retain(|(place, _)| !ended.iter().any(|(of, _)| of == place));
    }

    /// Reads what the ended processes said: it counts before their ends. A runtime that
    /// answers and exits has answered. Returns whether that was all.
    ///
    /// Some of it may still be on its way through the kernel, or wait for room in the
    /// channel. A connection that a child keeps open is not waited for without bound.
    pub(super) fn hear_last_words(&mut self) -> Result<bool, GuestError> {
        self.hear_what_is_there()?;
        if self.is_stream_paused() {
            self.last_words = None;
            return Ok(false);
        }
        let now = Instant::now();
        let limit = *self.last_words.get_or_insert(now + LAST_WORDS_LIMIT);
        let all = now >= limit || !self.server.is_hearing();
        if all {
            self.last_words = None;
        }
        Ok(all)
    }

    fn hear_what_is_there(&mut self) -> Result<(), GuestError> {
        for _ in 0..MAX_CONNECTIONS {
            let ready = self.poller.poll().map_err(GuestError::during("poll"))?;
            let calls = ready.filter(|t| matches!(t, Token::Listener | Token::Connection(_)));
            let calls: Vec<_> = calls.collect();
            if calls.is_empty() {
                break;
            }
            self.turn(calls.into_iter())?;
        }
        Ok(())
    }

    /// When the ends have to be looked at again, if there are any.
    pub(super) fn last_words_deadline(&self) -> Option<Instant> {
        let due = !self.ended.is_empty() && !self.is_stream_paused();
        due.then(|| self.last_words.unwrap_or_else(Instant::now))
    }

    /// Tells the state machines of the ends.
    pub(super) fn on_exits(&mut self) -> Result<(), GuestError> {
        for (place, status) in std::mem::take(&mut self.ended) {
            match place.checked_sub(1) {
                None => self.fail_environment(Failure::Exited(status))?,
                Some(place) => self.on_extension_exit(usize::from(place), status)?,
            }
        }
        Ok(())
    }

    fn on_extension_exit(&mut self, place: usize, status: ExitStatus) -> Result<(), GuestError> {
        match self.extensions.happen(place, extension::Event::Exit) {
            Ok(extension::Effect::Fail) => {
                let reason = ending(status);
                self.fail_extension("Extension.Crash", reason)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn fail_extension(
        &mut self,
        error_type: &'static str,
        reason: String,
    ) -> Result<(), GuestError> {
        self.fail_environment(Failure::Extension { error_type, reason })
    }

    /// Nothing runs in this environment any more: the initialisation or the request
    /// fails with that.
    pub(super) fn fail_environment(&mut self, failure: Failure) -> Result<(), GuestError> {
        let (state, effect) = self
            .state
            .on(Event::Exit)
            .unwrap_or((self.state, Effect::Nothing));
        self.state = state;
        // What was said before explains more than how it ended.
        let failure = self.failure.get_or_insert(failure);
        // Parked, but not ready while an extension was not.
        let never_ready = !self.reported && effect == Effect::Nothing;
        match effect {
            Effect::FailRequest => self.fail_request(),
            Effect::CutStream => self.cut_stream(),
            _ if never_ready || effect == Effect::FailInit => {
                let error = failure.error(None);
                self.state = State::InitFailed;
                self.fail_init(&error)
            }
            _ => Ok(()),
        }
    }

    /// Answers the current request for a runtime that cannot.
    pub(super) fn fail_request(&mut self) -> Result<(), GuestError> {
        let Some(request) = self.request.clone() else {
            return Ok(());
        };
        let exited = Failure::Exited(ExitStatus::Code(0));
        let failure = self.failure.as_mut().map_or_else(
            || exited.error(Some(&request)),
            |failure| failure.error(Some(&request)),
        );
        let status = match &mut self.failure {
            Some(Failure::Restore { error_type, json }) => {
                let (error_type, json) = (error_type.clone(), std::mem::take(json));
                return self.fail_restore(request, error_type, json);
            }
            Some(Failure::Extension { .. }) => {
                let json = failure.to_json();
                return self.answer_error(Some(failure.error_type), json);
            }
            Some(Failure::Exited(status)) => *status,
            None => ExitStatus::Code(0),
        };
        self.delivery = None;
        self.drain_logs()?;
        self.on_answered("failure", 0);
        let message = GuestMessage::RuntimeExited {
            request,
            status,
            out_of_memory: self.machine.ran_out_of_memory(),
            more: self.has_more(),
        };
        self.channel.queue(&message, failure.to_json())?;
        Ok(())
    }

    /// The hooks failed: what they were to make unlike the snapshot may not be.
    fn fail_restore(
        &mut self,
        request: RequestId,
        error_type: Option<String>,
        json: Vec<u8>,
    ) -> Result<(), GuestError> {
        self.delivery = None;
        self.drain_logs()?;
        let message = GuestMessage::RestoreFailed {
            request,
            error_type,
        };
        self.channel.queue(&message, json)?;
        Ok(())
    }
}

impl Failure {
    /// In Lambda's words.
    fn error(&self, request: Option<&RequestId>) -> FunctionError {
        match self {
            Self::Exited(status) => FunctionError::exited(request, *status),
            Self::Extension { error_type, reason } => {
                FunctionError::extension(request, error_type, reason)
            }
            Self::Restore { error_type, .. } => {
                let error_type = error_type.as_deref().unwrap_or("Runtime.Unknown");
                FunctionError::new(error_type, "the hooks after a restore failed")
            }
        }
    }
}
