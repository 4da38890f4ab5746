//! What the end of a process means.

use snapback_proto::guest::{ExitStatus, GuestMessage};

use snapback_proto::ids::RequestId;

use super::{Failure, Guest, GuestError};
use crate::runtime_api::errors::FunctionError;
use crate::runtime_api::state::{Effect, Event};

impl Guest {
    pub(super) fn on_runtime_ended(&mut self) -> Result<(), GuestError> {
        if let Some(runtime) = &self.runtime {
            let ended = runtime
                .try_wait()
                .map_err(GuestError::during("reap the runtime"))?;
            self.ended = self.ended.or(ended);
        }
        self.forget_ended_runtime();
        Ok(())
    }

    pub(super) fn on_orphans(&mut self) -> Result<(), GuestError> {
        if let Some(orphans) = &self.orphans {
            let reaped = orphans.reap(self.runtime.as_ref());
            let ended = reaped.map_err(GuestError::during("reap orphans"))?;
            self.ended = self.ended.or(ended);
        }
        self.forget_ended_runtime();
        Ok(())
    }

    /// Its process id is free for others now.
    fn forget_ended_runtime(&mut self) {
        if self.ended.is_some() {
            self.runtime = None;
        }
    }

    /// Tells the state machine of the runtime's end.
    pub(super) fn on_exit(&mut self) -> Result<(), GuestError> {
        let Some(status) = self.ended.take() else {
            return Ok(());
        };
        let (state, effect) = self
            .state
            .on(Event::Exit)
            .unwrap_or((self.state, Effect::Nothing));
        self.state = state;
        // What it said before it ended explains more than how it ended.
        self.failure.get_or_insert(Failure::Exited(status));
        match effect {
            Effect::FailInit => self.fail_init(FunctionError::exited(None, status)),
            Effect::FailRequest => self.fail_request(),
            Effect::CutStream => self.cut_stream(),
            _ => Ok(()),
        }
    }

    /// Answers the current request for a runtime that cannot.
    pub(super) fn fail_request(&mut self) -> Result<(), GuestError> {
        let Some(request) = self.request.clone() else {
            return Ok(());
        };
        let status = match &mut self.failure {
            Some(Failure::Restore { error_type, json }) => {
                let (error_type, json) = (error_type.clone(), std::mem::take(json));
                return self.fail_restore(request, error_type, json);
            }
            Some(Failure::Exited(status)) => *status,
            None => ExitStatus::Code(0),
        };
        self.delivery = None;
        self.logs.drain(&mut self.channel)?;
        let json = FunctionError::exited(Some(&request), status).to_json();
        let message = GuestMessage::RuntimeExited {
            request,
            status,
            out_of_memory: self.machine.ran_out_of_memory(),
            more: self.has_more(),
        };
        self.channel.queue(&message, json)?;
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
        self.logs.drain(&mut self.channel)?;
        let message = GuestMessage::RestoreFailed {
            request,
            error_type,
        };
        self.channel.queue(&message, json)?;
        Ok(())
    }
}
