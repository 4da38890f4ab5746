//! What the agent says.

use std::sync::Arc;

use snapback_proto::guest::{
    GuestMessage, HostMessage, Init, Invoke, LogStream, Resume, VsockAccess,
};

use super::{Guest, GuestError};
use crate::http::Reply;
use crate::poller::{Interest, Token};
use crate::process::{Runtime, StartError, Started};
use crate::resume::{renew, set_clock};
use crate::runtime_api::errors::FunctionError;
use crate::runtime_api::state::{Effect, Event};
use crate::seccomp;

impl Guest {
    pub(super) fn on_channel(&mut self) -> Result<(), GuestError> {
        self.channel.receive()?;
        while let Some((message, payload)) = self.channel.next_frame::<HostMessage>()? {
            match message {
                HostMessage::Init(init) => self.on_init(&init)?,
                HostMessage::Resume(resume) => self.on_resume(&resume)?,
                HostMessage::Invoke(invoke) => self.on_invoke(invoke, payload)?,
            }
        }
        Ok(())
    }

    /// Moves on, or fails: the agent is held to the protocol.
    fn expect(&mut self, event: Event) -> Result<Effect, GuestError> {
        let state = self.state;
        let (next, effect) = state
            .on(event)
            .ok_or(GuestError::Unexpected { event, state })?;
        self.state = next;
        Ok(effect)
    }

    fn on_init(&mut self, init: &Init) -> Result<(), GuestError> {
        self.expect(Event::Init)?;
        set_clock(self.machine.as_mut(), init.wall_clock_ns)?;
        if init.vsock == VsockAccess::Denied {
            seccomp::deny_vsock().map_err(GuestError::during("close vsock"))?;
        }
        let api = self
            .server
            .address()
            .map_err(GuestError::during("find its own address"))?;
        match Runtime::start(&self.layout, init, api) {
            Ok(started) => self.adopt(started),
            Err(StartError::Descriptor(source)) => Err(GuestError::Loop {
                doing: "start the runtime",
                source,
            }),
            Err(error @ (StartError::NoBootstrap { .. } | StartError::Exec { .. })) => {
                self.expect(Event::Exit)?;
                self.fail_init(FunctionError::invalid_entrypoint(&error.to_string()))
            }
        }
    }

    fn adopt(&mut self, started: Started) -> Result<(), GuestError> {
        let watch = GuestError::during("watch the runtime");
        self.poller
            .add(&started.runtime, Token::Process(0), Interest::READ)
            .map_err(watch)?;
        self.logs.add(0, LogStream::Stdout, started.stdout);
        self.logs.add(1, LogStream::Stderr, started.stderr);
        self.runtime = Some(started.runtime);
        Ok(())
    }

    fn on_resume(&mut self, resume: &Resume) -> Result<(), GuestError> {
        let effect = self.expect(Event::Resume)?;
        renew(self.machine.as_mut(), resume)?;
        let generation = resume.generation;
        self.channel
            .queue(&GuestMessage::Resumed { generation }, Vec::new())?;
        self.channel.flush()?;
        if effect == Effect::ConfirmAndRelease
            && let Some(slot) = self.waiter.take()
        {
            self.reply(slot, Reply::json(200, Vec::new()))?;
        }
        Ok(())
    }

    fn on_invoke(&mut self, invoke: Invoke, event: Vec<u8>) -> Result<(), GuestError> {
        let effect = self.expect(Event::Invoke)?;
        self.delivery = Some(delivery(&invoke, event));
        self.request = Some(invoke.request);
        match effect {
            Effect::Deliver => {
                if let Some(slot) = self.waiter.take() {
                    self.deliver(slot)?;
                }
                Ok(())
            }
            Effect::FailRequest => self.fail_request(),
            // Held until the runtime asks.
            _ => Ok(()),
        }
    }

    /// Answers a call to `next` with the current request.
    pub(super) fn deliver(&mut self, slot: u8) -> Result<(), GuestError> {
        match self.delivery.clone() {
            Some(delivery) => self.reply(slot, delivery),
            None => Ok(()),
        }
    }
}

/// The request as `invocation/next` returns it.
fn delivery(invoke: &Invoke, event: Vec<u8>) -> Reply {
    let optional = [
        ("Lambda-Runtime-Trace-Id", &invoke.trace_id),
        ("Lambda-Runtime-Client-Context", &invoke.client_context),
        ("Lambda-Runtime-Aws-Tenant-Id", &invoke.tenant_id),
    ];
    let mut reply = Reply::shared(200, Arc::new(event))
        .header("Lambda-Runtime-Aws-Request-Id", invoke.request.as_str())
        .header(
            "Lambda-Runtime-Deadline-Ms",
            &invoke.deadline_ms.to_string(),
        )
        .header("Lambda-Runtime-Invoked-Function-Arn", &invoke.function_arn);
    for (name, value) in optional {
        if let Some(value) = value {
            reply = reply.header(name, value);
        }
    }
    reply
}
