//! The guest's owner: one thread, one loop, one state.
//!
//! ```text
//!                 ┌───────────────────── Poller ─────────────────────┐
//!                 │            │             │           │           │
//!              Channel      Listener,     Log pipes   Processes    Telemetry
//!              (host)       connections   (stdout,    (runtime,    subscribers
//!                 │         (runtime,      stderr)     extensions)
//!                 │          extensions)     │           │
//!                 ▼            ▼             │           ▼
//!             `host`   `calls`, `extensions`─┼──────► `exit`
//!                 └────────────┴── State::on ┴───────────┘
//!                                  `ending` (what is left to do after an answer)
//! ```
//!
//! A thread per connection would be simpler to read and worse in every other way:
//! each stack is pages that a request dirties and a reset copies back, and the
//! order "output before answer" would need locks where here it is program order.
//!
//! One turn of the loop waits, handles what is ready, and then sends what was
//! queued; a request costs one wakeup before the runtime runs (resume and invoke come
//! together) and one after each of its calls. While parked the loop sits in that wait, with empty buffers.

mod calls;
mod ending;
mod exit;
mod extensions;
mod host;
mod stream;

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use snapback_proto::guest::{ExitStatus, GuestMessage, Init};
use snapback_proto::ids::RequestId;

use crate::channel::{Channel, ChannelError};
use crate::extensions::Extensions;
use crate::http::Reply;
use crate::logs::{LogError, Logs};
use crate::poller::{Interest, Poller, Token};
use crate::process::{Layout, Orphans, Process};
use crate::resume::{Machine, ResumeError};
use crate::runtime_api::connection::Received;
use crate::runtime_api::server::Server;
use crate::runtime_api::state::{Event, State};
use crate::telemetry::Telemetry;
use ending::Ending;
use host::Delivery;

/// Log output is left in its pipe while the channel has more than this to send.
const CHANNEL_HIGH_WATER: usize = 1024 * 1024;

/// A streamed answer is left in its socket while the channel has more than this to
/// send. Less than for output, so that a stream does not stand in its way.
const STREAM_HIGH_WATER: usize = 256 * 1024;

/// Most reads from one connection before the others get their turn. More than a
/// whole body of the largest size takes.
const READS_PER_TURN: usize = 256;

/// The guest cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The channel cannot be used.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The runtime's output cannot be passed on.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The guest cannot be made unlike the others of its snapshot.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// The agent asked for something that makes no sense now.
    #[error("the agent sent {event:?} while the environment was {state:?}")]
    Unexpected {
        /// What it asked for.
        event: Event,
        /// The state at that time.
        state: State,
    },
    /// The event loop's own descriptors failed.
    #[error("the event loop cannot {doing}")]
    Loop {
        /// What it was doing.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl GuestError {
    fn during(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Loop { doing, source }
    }
}

/// What a guest is made of.
pub struct Parts {
    /// The invocation channel, connected.
    pub channel: Channel,
    /// The Runtime API's listener, bound.
    pub listener: TcpListener,
    /// Where the function is.
    pub layout: Layout,
    /// What a resume renews.
    pub machine: Box<dyn Machine>,
    /// The processes to reap besides the runtime, if this is PID 1.
    pub orphans: Option<Orphans>,
}

/// The environment of one function.
pub struct Guest {
    state: State,
    poller: Poller,
    channel: Channel,
    channel_watched_for_room: bool,
    server: Server,
    logs: Logs,
    layout: Layout,
    machine: Box<dyn Machine>,
    orphans: Option<Orphans>,
    /// The runtime's process at place 0, each external extension's at its own + 1.
    processes: Vec<(u8, Process)>,
    /// How they ended, until the state machines have been told.
    ended: Vec<(u8, ExitStatus)>,
    /// Until when what they were saying may still arrive.
    last_words: Option<Instant>,
    /// What the agent said of the function, once it has.
    init: Option<Init>,
    /// The runtime has been started.
    started: Option<Instant>,
    /// The agent knows that the function is ready, or that it will never be.
    reported: bool,
    extensions: Extensions,
    telemetry: Telemetry,
    /// What extensions that asked late are still to hear: the current `INVOKE`.
    invoke_event: Vec<u8>,
    /// When the current request came.
    invoked: Option<Instant>,
    /// What is left to do after an answer.
    ending: Option<Ending>,
    /// The connection whose call to `next` waits.
    waiter: Option<u8>,
    /// The connection on which an answer comes in pieces.
    streamer: Option<Streamer>,
    /// The request that an answer must name. Stays until the next one.
    request: Option<RequestId>,
    /// The request as the runtime gets it, until it is answered.
    delivery: Option<Delivery>,
    /// Why requests fail once the runtime is gone.
    failure: Option<Failure>,
}

/// A connection on which an answer comes in pieces.
#[derive(Debug, Clone, Copy)]
struct Streamer {
    slot: u8,
    /// Nothing is read from it: the channel has enough to send.
    paused: bool,
}

/// Why the runtime takes no more requests.
#[derive(Debug)]
enum Failure {
    /// Its process has ended.
    Exited(ExitStatus),
    /// An extension has failed.
    Extension {
        error_type: &'static str,
        reason: String,
    },
    /// Its hooks failed after a restore; the JSON that it posted.
    Restore {
        error_type: Option<String>,
        json: Vec<u8>,
    },
}

impl Guest {
    /// Puts a guest together. Nothing is sent yet.
    ///
    /// # Errors
    /// When the event loop's descriptors cannot be made.
    pub fn new(parts: Parts) -> Result<Self, GuestError> {
        let poller = Poller::new().map_err(GuestError::during("start"))?;
        let watch = GuestError::during("watch the channel");
        poller
            .add(&parts.channel, Token::Channel, Interest::READ)
            .map_err(watch)?;
        if let Some(orphans) = &parts.orphans {
            let watch = GuestError::during("watch for ended processes");
            poller
                .add(orphans, Token::Orphans, Interest::READ)
                .map_err(watch)?;
        }
        let watch = GuestError::during("watch the listener");
        let server = Server::new(parts.listener, &poller).map_err(watch)?;
        Ok(Self {
            state: State::Blank,
            poller,
            channel: parts.channel,
            channel_watched_for_room: false,
            server,
            logs: Logs::default(),
            layout: parts.layout,
            machine: parts.machine,
            orphans: parts.orphans,
            processes: Vec::new(),
            ended: Vec::new(),
            last_words: None,
            init: None,
            started: None,
            reported: false,
            extensions: Extensions::default(),
            telemetry: Telemetry::default(),
            invoke_event: Vec::new(),
            invoked: None,
            ending: None,
            waiter: None,
            streamer: None,
            request: None,
            delivery: None,
            failure: None,
        })
    }

    /// Says hello and serves until something fails.
    ///
    /// # Errors
    /// Always, in the end: a guest has no other way to stop by itself.
    pub fn run(&mut self) -> Result<Infallible, GuestError> {
        let release = env!("CARGO_PKG_VERSION").to_owned();
        self.channel
            .queue(&GuestMessage::Hello { release }, Vec::new())?;
        self.finish_turn()?;
        loop {
            let limit = self.patience();
            let ready = self
                .poller
                .wait(limit)
                .map_err(GuestError::during("wait"))?;
            self.turn(ready)?;
            if !self.ended.is_empty() && self.hear_last_words()? {
                self.on_exits()?;
            }
            self.advance()?;
            self.finish_turn()?;
        }
    }

    fn turn(&mut self, ready: impl Iterator<Item = Token>) -> Result<(), GuestError> {
        for token in ready {
            match token {
                Token::Channel => self.on_channel()?,
                Token::Listener => self.on_listener()?,
                Token::Connection(slot) => self.on_connection(slot)?,
                Token::Log(stream) => self.on_log(stream)?,
                Token::Process(place) => self.on_process_ended(place)?,
                Token::Orphans => self.on_orphans()?,
                Token::Subscriber(place) => self
                    .telemetry
                    .on_ready(place, &self.poller)
                    .map_err(GuestError::during("watch a subscriber"))?,
            }
        }
        Ok(())
    }

    /// How long the loop may wait for something to happen.
    fn patience(&self) -> Option<Duration> {
        let ending = self.ending.as_ref().and_then(Ending::deadline);
        let others = [self.telemetry.deadline(), self.channel.due()];
        let next = [ending, self.last_words_deadline()]
            .into_iter()
            .chain(others);
        let next = next.flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Does what has become possible, or due.
    fn advance(&mut self) -> Result<(), GuestError> {
        self.start_when_registered()?;
        self.report_when_ready()?;
        self.end_when_over()?;
        self.send_telemetry(false)
    }

    fn send_telemetry(&mut self, all: bool) -> Result<(), GuestError> {
        let send = GuestError::during("watch a subscriber");
        self.telemetry.send(all, &self.poller).map_err(send)
    }

    /// Sends what the turn has queued and settles what is watched from now on.
    fn finish_turn(&mut self) -> Result<(), GuestError> {
        self.channel.flush()?;
        let wants_room = self.channel.wants_room();
        if wants_room != self.channel_watched_for_room {
            let watch = GuestError::during("watch the channel");
            let interest = Interest::writing(wants_room);
            self.poller
                .change(&self.channel, Token::Channel, interest)
                .map_err(watch)?;
            self.channel_watched_for_room = wants_room;
        }
        if self.may_log() {
            self.logs.watch(true, &self.poller)?;
        }
        if self.is_stream_paused() && !self.is_stream_full() {
            self.pause_stream(false)?;
        }
        Ok(())
    }

    fn is_stream_paused(&self) -> bool {
        self.streamer.is_some_and(|s| s.paused)
    }

    fn is_stream_full(&self) -> bool {
        self.channel.unsent() >= STREAM_HIGH_WATER
    }

    /// Lets the sender of a streamed answer wait, or go on.
    fn pause_stream(&mut self, paused: bool) -> Result<(), GuestError> {
        if let Some(streamer) = &mut self.streamer {
            streamer.paused = paused;
            let watch = GuestError::during("watch a connection");
            self.server
                .pause(streamer.slot, paused, &self.poller)
                .map_err(watch)?;
        }
        Ok(())
    }

    fn may_log(&self) -> bool {
        !self.is_quiet() && self.channel.unsent() < CHANNEL_HIGH_WATER
    }

    /// Whether a snapshot may be taken now: nothing is written to the channel then.
    fn is_quiet(&self) -> bool {
        self.state.is_parked() && self.reported && self.ending.is_none()
    }

    fn on_log(&mut self, place: u8) -> Result<(), GuestError> {
        if self.may_log() {
            self.logs
                .pump(place, &mut self.channel, &mut self.telemetry)?;
        } else {
            self.logs.watch(false, &self.poller)?;
        }
        Ok(())
    }

    fn on_listener(&mut self) -> Result<(), GuestError> {
        let accept = |source| GuestError::Loop {
            doing: "watch a connection",
            source,
        };
        while let Some(slot) = self.server.accept(&self.poller).map_err(accept)? {
            self.on_connection(slot)?;
        }
        Ok(())
    }

    fn on_connection(&mut self, slot: u8) -> Result<(), GuestError> {
        for _ in 0..READS_PER_TURN {
            let Some(connection) = self.server.get(slot) else {
                return Ok(());
            };
            let received = connection.receive();
            if matches!(received, Received::Bytes | Received::Last) {
                self.serve_calls(slot)?;
            }
            let watch = GuestError::during("watch a connection");
            let lives = self.server.flush(slot, &self.poller).map_err(watch)?;
            if received == Received::End || !lives {
                return self.close(slot);
            }
            if self.streamer.is_some_and(|s| s.slot == slot) {
                self.channel.flush()?;
                if self.is_stream_full() {
                    return self.pause_stream(true);
                }
            }
            if received != Received::Bytes {
                return Ok(());
            }
        }
        Ok(())
    }

    fn close(&mut self, slot: u8) -> Result<(), GuestError> {
        self.server.close(slot);
        self.lose_stream(slot)?;
        self.lose_extension(slot);
        if self.waiter == Some(slot) {
            self.waiter = None;
            if let Some((state, _)) = self.state.on(Event::Hangup) {
                self.state = state;
            }
        }
        Ok(())
    }

    /// Passes on all the output that is there.
    fn drain_logs(&mut self) -> Result<(), GuestError> {
        Ok(self.logs.drain(&mut self.channel, &mut self.telemetry)?)
    }

    /// Queues a response and sends it.
    fn reply(&mut self, slot: u8, reply: Reply) -> Result<(), GuestError> {
        if let Some(connection) = self.server.get(slot) {
            connection.reply(reply);
            let watch = GuestError::during("watch a connection");
            if !self.server.flush(slot, &self.poller).map_err(watch)? {
                self.close(slot)?;
            }
        }
        Ok(())
    }
}
