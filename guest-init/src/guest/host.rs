//! What the agent says.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use snapback_proto::guest::{
    Gather, GuestMessage, HostMessage, Init, Invoke, LogFormat, LogStream, Resume, VsockAccess,
};

use super::{Failure, Guest, GuestError};
use crate::environment;
use crate::extensions::{MAX_EXTENSIONS, executables};
use crate::http::Reply;
use crate::poller::{Interest, Token};
use crate::process::{Process, Program, StartError, Started};
use crate::resume::{renew, set_clock};
use crate::runtime_api::errors::FunctionError;
use crate::runtime_api::state::{Effect, Event, State};
use crate::seccomp;
use crate::sys::heap;

impl Guest {
    pub(super) fn on_channel(&mut self) -> Result<(), GuestError> {
        self.channel.receive()?;
        while let Some((message, payload)) = self.channel.next_frame::<HostMessage>()? {
            match message {
                HostMessage::Init(init) => self.on_init(init)?,
                HostMessage::Resume(resume) => self.on_resume(&resume)?,
                HostMessage::Invoke(invoke) => self.on_invoke(invoke, payload)?,
                HostMessage::Gather(gather) => self.on_gather(&gather)?,
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

    fn on_init(&mut self, init: Init) -> Result<(), GuestError> {
        self.expect(Event::Init)?;
        set_clock(self.machine.as_mut(), init.wall_clock_ns)?;
        self.machine
            .bound_tmp(init.ephemeral_storage_mib)
            .map_err(GuestError::during("bound /tmp"))?;
        if init.vsock == VsockAccess::Denied {
            seccomp::deny_vsock().map_err(GuestError::during("close vsock"))?;
        }
        if init.log_format == LogFormat::Json {
            self.telemetry.expect_json_lines();
        }
        self.init = Some(init);
        self.telemetry.begin_history();
        // The runtime is started when these have registered.
        self.start_extensions()
    }

    /// All the variables of the runtime.
    fn variables(&self) -> Result<Vec<(String, String)>, GuestError> {
        let api = self
            .server
            .address()
            .map_err(GuestError::during("find its own address"))?;
        let task_root = self.layout.task_root.to_string_lossy();
        let Some(mut init) = self.init.clone() else {
            return Ok(Vec::new());
        };
        if let Some(container) = &self.layout.container {
            // The function's own win over the image's.
            let of_image = container.environment.iter().cloned();
            init.environment.splice(0..0, of_image);
        }
        Ok(environment::variables(&init, &task_root, api))
    }

    fn start_extensions(&mut self) -> Result<(), GuestError> {
        let programs = executables(&self.layout.extensions);
        if programs.len() > MAX_EXTENSIONS {
            let reason = format!("there are more than {MAX_EXTENSIONS} extensions");
            return self.fail_environment(Failure::Extension {
                error_type: "Extension.LaunchError",
                reason,
            });
        }
        for path in programs {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let place = self.extensions.launched(name.into_owned());
            let started = Process::start(Program {
                path: &path,
                arguments: &[],
                folder: Path::new("/"),
                environment: environment::for_extension(self.variables()?),
                user: self.layout.user,
            });
            let place = u8::try_from(place + 1).unwrap_or(u8::MAX);
            match started {
                Ok(started) => self.adopt(place, started)?,
                Err(StartError::Descriptor(source)) => return Err(cannot_start(source)),
                Err(error) => {
                    return self.fail_environment(Failure::Extension {
                        error_type: "Extension.LaunchError",
                        reason: error.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Starts the runtime as soon as every external extension has registered.
    pub(super) fn start_when_registered(&mut self) -> Result<(), GuestError> {
        let waits = self.state == State::Initialising && self.started.is_none();
        if !waits || self.extensions.are_missing() {
            return Ok(());
        }
        self.started = Some(Instant::now());
        self.on_init_start();
        let environment = self.variables()?;
        let started = self.layout.runtime(environment).and_then(Process::start);
        match started {
            Ok(started) => self.adopt(0, started),
            Err(StartError::Descriptor(source)) => Err(cannot_start(source)),
            Err(error @ (StartError::NoBootstrap { .. } | StartError::Exec { .. })) => {
                self.expect(Event::Exit)?;
                self.fail_init(&FunctionError::invalid_entrypoint(&error.to_string()))
            }
        }
    }

    fn adopt(&mut self, place: u8, started: Started) -> Result<(), GuestError> {
        let watch = GuestError::during("watch a process");
        self.poller
            .add(&started.process, Token::Process(place), Interest::READ)
            .map_err(watch)?;
        let streams = match place {
            0 => [LogStream::Stdout, LogStream::Stderr],
            _ => [LogStream::Extension; 2],
        };
        self.logs.add(2 * place, streams[0], started.stdout);
        self.logs.add(2 * place + 1, streams[1], started.stderr);
        self.processes.push((place, started.process));
        Ok(())
    }

    fn on_gather(&mut self, pages: &Gather) -> Result<(), GuestError> {
        self.expect(Event::Gather)?;
        let moved = self.machine.gather(pages);
        let moved = moved.map_err(GuestError::during("move pages"))?;
        // As before every report after which a snapshot may be taken.
        heap::release_free_memory();
        let message = GuestMessage::Gathered { moved };
        Ok(self.channel.queue(&message, Vec::new())?)
    }

    fn on_resume(&mut self, resume: &Resume) -> Result<(), GuestError> {
        let effect = self.expect(Event::Resume)?;
        renew(self.machine.as_mut(), resume)?;
        let generation = resume.generation;
        self.channel
            .queue(&GuestMessage::Resumed { generation }, Vec::new())?;
        if effect == Effect::ConfirmAndRelease
            && let Some(slot) = self.waiter.take()
        {
            self.reply(slot, Reply::json(200, Vec::new()))?;
        }
        Ok(())
    }

    fn on_invoke(&mut self, invoke: Invoke, event: Vec<u8>) -> Result<(), GuestError> {
        let effect = self.expect(Event::Invoke)?;
        self.invoked = Some(Instant::now());
        self.tell_extensions(&invoke)?;
        let request = invoke.request.clone();
        self.request = Some(request.clone());
        let mut delivery = Delivery {
            invoke,
            event: Arc::new(event),
            held: None,
        };
        match effect {
            Effect::Deliver => {
                self.delivery = Some(delivery);
                match self.waiter.take() {
                    Some(slot) => self.deliver(slot),
                    None => Ok(()),
                }
            }
            Effect::FailRequest => self.fail_request(),
            // Held until the runtime asks.
            _ => {
                delivery.held = Some(Instant::now());
                self.delivery = Some(delivery);
                let message = GuestMessage::Holding { request };
                Ok(self.channel.queue(&message, Vec::new())?)
            }
        }
    }

    /// Answers a call to `next` with the current request.
    pub(super) fn deliver(&mut self, slot: u8) -> Result<(), GuestError> {
        let Some(delivery) = &mut self.delivery else {
            return Ok(());
        };
        if let Some(since) = delivery.held.take() {
            // Its time begins here, and so does its deadline.
            let held = u64::try_from(since.elapsed().as_millis()).unwrap_or(0);
            delivery.invoke.deadline_ms = delivery.invoke.deadline_ms.saturating_add(held);
            let request = delivery.invoke.request.clone();
            // The agent's own limit is longer until it hears of it.
            let message = GuestMessage::Delivered { request };
            self.channel.queue_lazily(&message)?;
        }
        let reply = delivery.reply();
        self.reply(slot, reply)
    }
}

/// A request on its way to the runtime.
#[derive(Debug)]
pub(super) struct Delivery {
    invoke: Invoke,
    event: Arc<Vec<u8>>,
    /// Since when it waits for the runtime's hooks.
    held: Option<Instant>,
}

fn cannot_start(source: io::Error) -> GuestError {
    GuestError::Loop {
        doing: "start a process",
        source,
    }
}

impl Delivery {
    /// The request as `invocation/next` returns it.
    fn reply(&self) -> Reply {
        let invoke = &self.invoke;
        let optional = [
            ("Lambda-Runtime-Trace-Id", &invoke.trace_id),
            ("Lambda-Runtime-Client-Context", &invoke.client_context),
            ("Lambda-Runtime-Aws-Tenant-Id", &invoke.tenant_id),
        ];
        let deadline_ms = invoke.deadline_ms.to_string();
        let mut reply = Reply::shared(200, Arc::clone(&self.event))
            .header("Lambda-Runtime-Aws-Request-Id", invoke.request.as_str())
            .header("Lambda-Runtime-Deadline-Ms", &deadline_ms)
            .header("Lambda-Runtime-Invoked-Function-Arn", &invoke.function_arn);
        for (name, value) in optional {
            if let Some(value) = value {
                reply = reply.header(name, value);
            }
        }
        reply
    }
}
