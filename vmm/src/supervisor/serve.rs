//! The loop: commands in, replies and events out, devices served in between.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::Timespec;
use snapback_proto::control::{ControlError, Event, Failure, Reply, StopReason};

use super::blank::{Blank, HostDevices};
use super::io::{Wake, wait};
use super::restore::{RestoreError, boot, go_on, restore};
use super::saved::{MachineV1, Saved};
use super::state::{State, Step};
use super::{Live, snapshot};
use crate::bus::GuestEnd;
use crate::control::{ControlSocket, Request, RequestError, RunFiles, exit_on_hangup, failure};
use crate::reset::inventory::Parts;
use crate::reset::verify::verify;
use crate::reset::{ResetError, reset, settle};
use crate::vcpu::{Barrier, Entrance, Stop, Vcpu, VcpuError};

/// The name of a run in failures.
const RUN: &str = "run";
/// Pages that are made a machine's own ahead in one go.
const AHEAD: u32 = 64;

/// The process cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The agent sent something that is no command.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The agent cannot be answered.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The end of the agent cannot be watched for.
    #[error("the end of the control socket cannot be watched for")]
    Hangup(#[source] std::io::Error),
    /// Waiting failed.
    #[error("waiting for something to happen failed")]
    Wait(#[source] std::io::Error),
}

/// Serves the agent until it closes the control socket. A reset puts `parts` back: all
/// of them, but in a test that shows what one of them is for.
///
/// # Errors
/// When the socket carries something that is no command, or the kernel fails.
pub fn serve(control: ControlSocket, host: HostDevices, parts: Parts) -> Result<(), ServeError> {
    exit_on_hangup(control.as_fd()).map_err(ServeError::Hangup)?;
    let mut supervisor = Supervisor {
        control,
        host,
        parts,
        state: State::Started,
        machine: Contents::Nothing,
        barrier: None,
        woken: Instant::now(),
        entrance: None,
    };
    loop {
        let (fd, limit) = (supervisor.control.as_fd(), supervisor.patience());
        let Wake { control, stopped } =
            wait(fd, supervisor.served(), limit).map_err(ServeError::Wait)?;
        supervisor.woken = Instant::now();
        supervisor.look_at_entrance()?;
        if stopped {
            supervisor.look_at_vcpus()?;
        }
        if control {
            match supervisor.control.receive() {
                Ok(request) => supervisor.obey(request)?,
                Err(RequestError::Control(ControlError::Closed)) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

struct Supervisor {
    control: ControlSocket,
    host: HostDevices,
    parts: Parts,
    state: State,
    machine: Contents,
    /// Made when it is needed first: most machines have one principal.
    barrier: Option<Arc<Barrier>>,
    /// When something happened last: a command arrived.
    woken: Instant,
    /// While a run is not answered: the way into the guest, and when its command arrived.
    entrance: Option<(Arc<Entrance>, Instant)>,
}

/// What there is of a machine; `State` says what may be done with it.
enum Contents {
    Nothing,
    Blank(Box<Blank>),
    Booted(Box<Live>, MachineV1),
    Restored(Box<Live>, Box<Saved>),
}

/// What goes back to the agent.
enum Answer {
    /// A reply, and a descriptor with it.
    Now(Reply, Option<OwnedFd>),
    /// A reply, when the guest is entered.
    Entered,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self::Now(reply, None)
    }
}

/// A command that failed, and the guest's own end if that is why.
struct Refusal(Failure, Option<Stop>);

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self(failure, None)
    }
}

impl Supervisor {
    /// The machine whose devices are to be served: only one that runs. A stopped
    /// one's notifications wait.
    fn served(&self) -> Option<&Live> {
        match &self.machine {
            Contents::Booted(live, _) | Contents::Restored(live, _) if self.state.runs() => {
                Some(live)
            }
            _ => None,
        }
    }

    /// Executes one command and answers it.
    fn obey(&mut self, request: Request) -> Result<(), ControlError> {
        let name = request.name();
        let ends_run = matches!(request, Request::Reset { .. });
        let mut steps = steps_of(&request).iter();
        let next = steps.try_fold(self.state, |state, step| state.after(*step));
        let answer = match next {
            None => Err(Refusal::from(Failure {
                operation: name.to_owned(),
                reason: format!("the machine is {:?}: this is not possible now", self.state),
                section: None,
            })),
            Some(next) => self.execute(request).inspect(|_| self.state = next),
        };
        if ends_run {
            // A reset right behind a run stops a guest that has been entered meanwhile: the
            // run is answered first.
            self.look_at_entrance()?;
        }
        match answer {
            Ok(Answer::Entered) => Ok(()),
            Ok(Answer::Now(reply, fd)) => {
                if matches!(reply, Reply::OverBudget { .. }) {
                    self.state = State::Ended;
                }
                let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
                self.control.reply(reply, &fds)
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn refuse(&mut self, Refusal(failure, stop): Refusal) -> Result<(), ControlError> {
        if let Some(stop) = stop {
            self.end(stop)?;
        }
        self.state = State::Ended;
        self.control.reply(Reply::Failed(failure), &[])
    }

    fn execute(&mut self, request: Request) -> Result<Answer, Refusal> {
        let name = request.name();
        let contents = std::mem::replace(&mut self.machine, Contents::Nothing);
        let fail = |error: &dyn std::error::Error| failure(name, error, None);
        let (contents, answer) = match (request, contents) {
            (Request::Prepare(shape), Contents::Nothing) => {
                let blank = Blank::prepare(&self.host, shape).map_err(|e| fail(&e))?;
                let ranges = blank.memory.fault_ranges().map_err(|e| fail(&e))?;
                let uffd = blank
                    .uffd
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(|e| fail(&e))?;
                let answer = Answer::Now(Reply::Prepared { ranges }, Some(uffd));
                (Contents::Blank(Box::new(blank)), answer)
            }
            (Request::Boot(files), Contents::Blank(blank)) => {
                let (live, machine) = boot(*blank, files).map_err(|e| fail(&e))?;
                (
                    Contents::Booted(Box::new(live), machine),
                    Reply::Booted.into(),
                )
            }
            (Request::Snapshot(files), Contents::Booted(mut live, machine)) => {
                let written = snapshot::take(&mut live, machine.clone(), files)
                    .map_err(|e| Refusal(fail(&e), e.guest_stopped().cloned()))?;
                let reply = Reply::Snapshotted {
                    state_len: written.len,
                };
                (Contents::Booted(live, machine), reply.into())
            }
            (Request::Restore(mut files), Contents::Blank(blank)) => {
                let run = files.run.take();
                let refused = |e: RestoreError| failure(name, &e, e.section());
                let (live, saved) = restore(*blank, files).map_err(refused)?;
                let (live, saved) = (Box::new(live), Box::new(saved));
                let answer = match run {
                    None => {
                        settle(&live).map_err(|e| fail(&e))?;
                        Reply::Restored.into()
                    }
                    Some(run) => {
                        self.let_go(&live, &saved, run)?;
                        Answer::Entered
                    }
                };
                (Contents::Restored(live, saved), answer)
            }
            (Request::Run(run), Contents::Restored(live, saved)) => {
                self.let_go(&live, &saved, run)?;
                (Contents::Restored(live, saved), Answer::Entered)
            }
            (Request::Reset { page_budget }, Contents::Restored(mut live, saved)) => {
                let reply = match reset(&mut live, &saved, self.parts, page_budget) {
                    Ok(report) => Reply::Reset(report),
                    Err(ResetError::OverBudget { pages }) => Reply::OverBudget { pages },
                    Err(e) => return Err(Refusal(fail(&e), e.guest_stopped().cloned())),
                };
                (Contents::Restored(live, saved), reply.into())
            }
            (Request::Verify, Contents::Restored(mut live, saved)) => {
                let differences = verify(&mut live, &saved).map_err(|e| fail(&e))?;
                (
                    Contents::Restored(live, saved),
                    Reply::Verified { differences }.into(),
                )
            }
            (Request::Continue(files), Contents::Blank(blank)) => {
                let refused = |e: RestoreError| failure(name, &e, e.section());
                let (live, saved) = go_on(*blank, files).map_err(refused)?;
                // Nobody waits to hear when it is entered.
                live.enter(&saved, self.parts).map_err(|e| fail(&e))?;
                let contents = Contents::Booted(Box::new(live), saved.machine);
                (contents, Reply::Booted.into())
            }
            // The table allowed the step, so the contents are of its state.
            (request, _) => {
                return Err(Refusal::from(Failure {
                    operation: request.name().to_owned(),
                    reason: "the machine is gone".to_owned(),
                    section: None,
                }));
            }
        };
        self.machine = contents;
        Ok(answer)
    }

    /// Lets a guest that stands at its snapshot run, with the host ends of a lease.
    fn let_go(&mut self, live: &Live, saved: &Saved, run: RunFiles) -> Result<(), Failure> {
        let fail = |error: &dyn std::error::Error| failure(RUN, error, None);
        if run.barrier {
            self.forget_predictions(live).map_err(|e| fail(&e))?;
        }
        live.board
            .bus()
            .attach_hosts(run.ends)
            .map_err(|e| fail(&e))?;
        let entrance = live.enter(saved, self.parts);
        self.entrance = Some((entrance.map_err(|e| fail(&e))?, self.woken));
        Ok(())
    }

    /// How long to wait for something to happen.
    fn patience(&self) -> Option<Timespec> {
        const SOON: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        if self.entrance.is_some() {
            return Some(SOON);
        }
        let open = self.served().is_some_and(|live| live.board.ahead.is_open());
        open.then_some(Timespec::default())
    }

    /// Answers a run whose guest is entered, and does what is to be done ahead of one.
    fn look_at_entrance(&mut self) -> Result<(), ControlError> {
        if let Some((entrance, since)) = &self.entrance {
            let Some(entered) = entrance.entered() else {
                return Ok(());
            };
            let took = entered.saturating_duration_since(*since).as_nanos();
            self.entrance = None;
            let entered_ns = u64::try_from(took).unwrap_or(u64::MAX);
            self.control.reply(Reply::Running { entered_ns }, &[])?;
            if let Contents::Restored(live, _) = &mut self.machine {
                live.give_spare_back();
            }
        }
        if let Some(live) = self.served() {
            live.board.ahead.advance(AHEAD);
        }
        Ok(())
    }

    /// No vCPU of `live` speculates on what an earlier guest taught its processor.
    fn forget_predictions(&mut self, live: &Live) -> Result<(), VcpuError> {
        let barrier = match &self.barrier {
            Some(barrier) => Arc::clone(barrier),
            None => Arc::clone(self.barrier.insert(Arc::new(Barrier::new(&self.host.kvm)?))),
        };
        live.forget_predictions(&barrier)
    }

    /// A vCPU left its guest without being asked to: the guest is over.
    fn look_at_vcpus(&mut self) -> Result<(), ControlError> {
        // It may have entered it a moment ago.
        self.look_at_entrance()?;
        let Some(live) = self.served() else {
            return Ok(());
        };
        // Another vCPU's stop may have written the event: read it once.
        let _ = live.stopped.read();
        if self.entrance.is_some() {
            let Some(error) = live.vcpus.iter().find_map(Vcpu::refused) else {
                return Ok(());
            };
            let stop = error.guest_stopped().cloned();
            let failure = failure(RUN, &error, None);
            self.entrance = None;
            return self.refuse(Refusal(failure, stop));
        }
        match live.vcpus.iter().filter_map(Vcpu::stopped).max() {
            Some(stop) => {
                live.abandon();
                self.end(stop)
            }
            None => Ok(()),
        }
    }

    /// The guest is over: says why.
    fn end(&mut self, stop: Stop) -> Result<(), ControlError> {
        self.state = State::Ended;
        self.control.event(Event::Stopped(reason_of(stop)))
    }
}

fn reason_of(stop: Stop) -> StopReason {
    match stop {
        Stop::Ended(GuestEnd::PoweredOff) => StopReason::PoweredOff,
        Stop::Ended(GuestEnd::Rebooted) => StopReason::Rebooted,
        Stop::Ended(GuestEnd::Panicked) => StopReason::Panicked,
        Stop::Paused => StopReason::Broken("a vCPU stopped that nobody asked to".to_owned()),
        Stop::Broken(why) => StopReason::Broken(why.to_string()),
    }
}

/// The steps of a request, in order: a restore may go on to a run.
fn steps_of(request: &Request) -> &'static [Step] {
    match request {
        Request::Prepare(_) => &[Step::Prepare],
        Request::Boot(_) => &[Step::Boot],
        Request::Snapshot(_) => &[Step::Snapshot],
        Request::Restore(files) if files.run.is_some() => &[Step::Restore, Step::Run],
        Request::Restore(_) => &[Step::Restore],
        Request::Run(_) => &[Step::Run],
        Request::Reset { .. } => &[Step::Reset],
        Request::Verify => &[Step::Verify],
        Request::Continue(_) => &[Step::Continue],
    }
}
