//! Lambda's Telemetry API: what happens in the environment, sent to those of its
//! extensions that want to hear of it.
//!
//! ```text
//!  platform events ─┐
//!  output lines ────┴─► Telemetry ─► one bounded buffer per subscriber ─► POST
//! ```
//!
//! * [`subscription`]: what a subscriber asks for, within Lambda's ranges.
//! * [`subscriber`]: its buffer and the delivery that is under way.
//! * [`lines`]: output cut into lines.
//! * [`records`]: events as JSON.
//!
//! Without a subscriber nothing of this costs anything.

pub mod lines;
pub mod records;
pub mod subscriber;
pub mod subscription;

use std::io;
use std::time::Instant;

use serde_json::Value;

use crate::poller::Poller;
use lines::Lines;
use subscriber::Subscriber;
use subscription::{Kind, Subscription};

/// Everybody who has subscribed.
#[derive(Debug, Default)]
pub struct Telemetry {
    subscribers: Vec<(usize, Subscriber)>,
    /// Output whose line is not complete, by the output's place.
    lines: Vec<(u8, Kind, Lines)>,
    /// Output lines are JSON objects where they can be.
    json_lines: bool,
    /// What happened during the initialisation, for those who subscribe in its
    /// course. `None` when it is over.
    history: Option<History>,
}

/// Events, up to a bound.
#[derive(Debug, Default)]
struct History {
    events: Vec<(Kind, String)>,
    bytes: usize,
}

/// Most bytes of the initialisation's events.
const MAX_HISTORY: usize = 64 * 1024;

impl Telemetry {
    /// The initialisation begins: what happens is kept for those who subscribe later.
    pub fn begin_history(&mut self) {
        self.history = Some(History::default());
    }

    /// The initialisation is over.
    pub fn end_history(&mut self) {
        self.history = None;
    }

    /// Output lines that are JSON objects are passed on as such.
    pub fn expect_json_lines(&mut self) {
        self.json_lines = true;
    }

    /// Adds a subscriber, or gives an extension's subscription another content.
    pub fn subscribe(&mut self, extension: usize, subscription: Subscription) {
        self.subscribers.retain(|(place, _)| *place != extension);
        let place = u8::try_from(extension).unwrap_or(u8::MAX);
        let mut subscriber = Subscriber::new(place, subscription);
        let past = self.history.iter().flat_map(|history| &history.events);
        for (kind, event) in past {
            if subscriber.wants(*kind) {
                subscriber.push(event, Instant::now());
            }
        }
        self.subscribers.push((extension, subscriber));
    }

    /// Whether anybody wants this.
    #[must_use]
    pub fn is_wanted(&self, kind: Kind) -> bool {
        self.subscribers.iter().any(|(_, s)| s.wants(kind))
    }

    /// A platform event, for example `platform.start`.
    pub fn platform(&mut self, kind: &'static str, record: Value) {
        if self.history.is_some() || self.is_wanted(Kind::Platform) {
            self.push(Kind::Platform, &records::event(kind, record));
        }
    }

    /// Output of the function or of an extension.
    pub fn output(&mut self, place: u8, kind: Kind, bytes: &[u8]) {
        if self.history.is_none() && !self.is_wanted(kind) {
            return;
        }
        let index = match self.lines.iter().position(|(of, ..)| *of == place) {
            Some(index) => index,
            None => {
                self.lines.push((place, kind, Lines::default()));
                self.lines.len() - 1
            }
        };
        let mut complete = Vec::new();
        self.lines[index].2.push(bytes, |line| complete.push(line));
        self.push_lines(kind, complete);
    }

    /// What is left of lines that were not completed.
    pub fn end_lines(&mut self) {
        for (_, kind, mut lines) in std::mem::take(&mut self.lines) {
            let mut last = Vec::new();
            lines.finish(|line| last.push(line));
            self.push_lines(kind, last);
        }
    }

    fn push_lines(&mut self, kind: Kind, lines: Vec<String>) {
        let name = match kind {
            Kind::Extension => "extension",
            Kind::Function | Kind::Platform => "function",
        };
        for line in lines {
            let record = records::line(line, self.json_lines);
            self.push(kind, &records::event(name, record));
        }
    }

    fn push(&mut self, kind: Kind, event: &str) {
        let now = Instant::now();
        if let Some(history) = &mut self.history
            && history.bytes + event.len() <= MAX_HISTORY
        {
            history.bytes += event.len();
            history.events.push((kind, event.to_owned()));
        }
        let wanting = self.subscribers.iter_mut();
        for (_, subscriber) in wanting.filter(|(_, s)| s.wants(kind)) {
            subscriber.push(event, now);
        }
    }

    /// Sends whatever is due, and everything with `all`.
    ///
    /// # Errors
    /// When the poller refuses. A subscriber that cannot be reached is no error.
    pub fn send(&mut self, all: bool, poller: &Poller) -> io::Result<()> {
        let now = Instant::now();
        for (_, subscriber) in &mut self.subscribers {
            subscriber.send(all, now, poller)?;
        }
        Ok(())
    }

    /// Something happened to a delivery.
    ///
    /// # Errors
    /// When the poller refuses.
    pub fn on_ready(&mut self, place: u8, poller: &Poller) -> io::Result<()> {
        let mut of = self.subscribers.iter_mut();
        match of.find(|(_, s)| s.place() == place) {
            Some((_, subscriber)) => subscriber.on_ready(poller),
            None => Ok(()),
        }
    }

    /// When [`Self::send`] has something to do at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.subscribers
            .iter()
            .filter_map(|(_, s)| s.deadline())
            .min()
    }

    /// Whether nothing is buffered or on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.subscribers.iter().all(|(_, s)| s.is_idle())
    }

    /// Forgets what is buffered: nobody takes it in time.
    pub fn give_up(&mut self) {
        for (_, subscriber) in &mut self.subscribers {
            subscriber.give_up();
        }
    }
}
