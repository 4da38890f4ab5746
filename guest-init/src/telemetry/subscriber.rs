//! One subscriber: what waits for it, and the delivery that is under way.
//!
//! ```text
//!  buffer ─(due)─► Connecting ─► Sending ─► Awaiting its answer ─► buffer …
//!                      └───────────┴───────────┴── failed, late: the batch is dropped
//! ```
//!
//! A subscriber that takes nothing costs a bounded buffer. What does not fit is
//! counted and told with the next delivery, as `platform.logsDropped`.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, connect, recv, socket_with, sockopt,
};
use serde_json::json;

use super::records;
use super::subscription::{Kind, Subscription};
use crate::output::OutputQueue;
use crate::poller::{Interest, Poller, Token};

/// How long one delivery may take.
const DELIVERY_LIMIT: Duration = Duration::from_secs(2);

/// Buffered besides a batch that is on its way, in batches.
const BATCHES: usize = 2;

/// A subscriber.
#[derive(Debug)]
pub struct Subscriber {
    place: u8,
    subscription: Subscription,
    /// Events, ready to stand in a JSON array.
    events: Vec<String>,
    bytes: usize,
    oldest: Option<Instant>,
    dropped: Dropped,
    delivery: Option<Delivery>,
}

#[derive(Debug, Default)]
struct Dropped {
    records: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Delivery {
    socket: OwnedFd,
    output: OutputQueue,
    limit: Instant,
    records: u64,
    bytes: u64,
}

impl Subscriber {
    /// One to whom nothing has been sent.
    #[must_use]
    pub fn new(place: u8, subscription: Subscription) -> Self {
        Self {
            place,
            subscription,
            events: Vec::new(),
            bytes: 0,
            oldest: None,
            dropped: Dropped::default(),
            delivery: None,
        }
    }

    /// What the poller knows it by.
    #[must_use]
    pub fn place(&self) -> u8 {
        self.place
    }

    /// Whether it has subscribed to this.
    #[must_use]
    pub fn wants(&self, kind: Kind) -> bool {
        self.subscription.kinds.contains(&kind)
    }

    /// Buffers an event, or counts it as dropped.
    pub fn push(&mut self, event: &str, now: Instant) {
        let subscription = &self.subscription;
        let full = self.bytes + event.len() > BATCHES * subscription.max_bytes
            || self.events.len() >= BATCHES * subscription.max_items;
        if full {
            self.dropped.add(1, event.len());
            return;
        }
        self.bytes += event.len();
        self.events.push(event.to_owned());
        self.oldest.get_or_insert(now);
    }

    /// When [`Self::send`] has something to do at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match (&self.delivery, self.oldest) {
            (Some(delivery), _) => Some(delivery.limit),
            (None, oldest) => oldest.map(|oldest| oldest + self.subscription.timeout),
        }
    }

    /// Whether nothing is buffered or on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.delivery.is_none() && self.events.is_empty()
    }

    /// Forgets everything.
    pub fn give_up(&mut self) {
        self.delivery = None;
        self.events.clear();
        (self.bytes, self.oldest) = (0, None);
    }

    /// Begins a delivery if one is due (or, with `all`, if there is anything), and
    /// ends one that takes too long.
    ///
    /// # Errors
    /// When the poller refuses.
    pub fn send(&mut self, all: bool, now: Instant, poller: &Poller) -> io::Result<()> {
        if self.delivery.as_ref().is_some_and(|d| d.limit <= now) {
            self.fail();
        }
        let due = all
            || self.events.len() >= self.subscription.max_items
            || self.bytes >= self.subscription.max_bytes
            || self.deadline().is_some_and(|deadline| deadline <= now);
        if self.delivery.is_none() && !self.events.is_empty() && due {
            self.begin(now, poller)?;
        }
        Ok(())
    }

    fn begin(&mut self, now: Instant, poller: &Poller) -> io::Result<()> {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped.records > 0 {
            let record = json!({
                "reason": "the subscriber takes its telemetry too slowly",
                "droppedRecords": dropped.records,
                "droppedBytes": dropped.bytes,
            });
            let event = records::event("platform.logsDropped", record);
            self.events.push(event);
        }
        let events = std::mem::take(&mut self.events);
        (self.bytes, self.oldest) = (0, None);
        let records = u64::try_from(events.len()).unwrap_or(u64::MAX);
        let body = format!("[{}]", events.join(","));
        let bytes = body.len();
        match connecting(&self.subscription) {
            Ok(socket) => {
                poller.add(&socket, Token::Subscriber(self.place), Interest::WRITE)?;
                self.delivery = Some(Delivery {
                    socket,
                    output: request(&self.subscription, body),
                    limit: now + DELIVERY_LIMIT,
                    records,
                    bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
                });
            }
            Err(_) => self.dropped.add(records, bytes),
        }
        Ok(())
    }

    /// The delivery that failed is counted as dropped.
    fn fail(&mut self) {
        if let Some(delivery) = self.delivery.take() {
            self.dropped.records += delivery.records;
            self.dropped.bytes += delivery.bytes;
        }
    }

    /// The delivery's socket can be written or read.
    ///
    /// # Errors
    /// When the poller refuses.
    pub fn on_ready(&mut self, poller: &Poller) -> io::Result<()> {
        let Some(delivery) = &mut self.delivery else {
            return Ok(());
        };
        if !delivery.output.is_empty() {
            let connected = matches!(sockopt::socket_error(&delivery.socket), Ok(Ok(())));
            if !connected || delivery.output.send(&delivery.socket).is_err() {
                self.fail();
                return Ok(());
            }
            if delivery.output.is_empty() {
                let token = Token::Subscriber(self.place);
                poller.change(&delivery.socket, token, Interest::READ)?;
            }
            return Ok(());
        }
        // Whatever it answers, it has the batch.
        let mut answer = [0_u8; 512];
        match recv(&delivery.socket, &mut answer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.fail(),
            Ok(_) => self.delivery = None,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.fail(),
        }
        Ok(())
    }
}

impl Dropped {
    fn add(&mut self, records: u64, bytes: usize) {
        self.records = self.records.saturating_add(records);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// A socket on its way to the subscriber.
fn connecting(subscription: &Subscription) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    match connect(&socket, &subscription.address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

fn request(subscription: &Subscription, body: String) -> OutputQueue {
    let Subscription { path, host, .. } = subscription;
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let mut output = OutputQueue::default();
    output.push(head.into_bytes());
    output.push(body.into_bytes());
    output
}
