//! One client's connection to the Runtime API, without blocking.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::errors::Refusal;
use super::route::Route;
use crate::http::{Body, Head, HttpError, MAX_HEAD, Progress, Reply, RequestDecoder, reply};
use crate::output::OutputQueue;

/// What one read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// As many bytes as there was room for; there may be more.
    Bytes,
    /// All the bytes there were.
    Last,
    /// Nothing at the moment.
    Nothing,
    /// The client is gone.
    End,
}

/// A complete request.
#[derive(Debug)]
pub struct Call {
    /// Which one, or why it is refused.
    pub route: Result<Route, Refusal>,
    /// Its `Content-Type`.
    pub content_type: Option<String>,
    /// Its `Lambda-Runtime-Function-Error-Type`.
    pub error_type: Option<String>,
    /// Its body. Discarded when the call was refused at its head.
    pub body: Body,
}

/// A request whose body is still being read.
#[derive(Debug)]
struct Incoming {
    head: Head,
    route: Result<Route, Refusal>,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    decoder: RequestDecoder,
    output: OutputQueue,
    incoming: Option<Incoming>,
    /// A call is waiting for its response; no other is looked at meanwhile.
    waiting: bool,
    /// Whether the client wants another request after this one.
    keep_alive: bool,
    /// Nothing more is read; the connection ends when the output is sent.
    closing: bool,
}

impl Connection {
    /// Takes an accepted stream.
    ///
    /// # Errors
    /// When its options cannot be set.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            decoder: RequestDecoder::default(),
            output: OutputQueue::default(),
            incoming: None,
            waiting: false,
            keep_alive: true,
            closing: false,
        })
    }

    /// Reads once what is there.
    pub fn receive(&mut self) -> Received {
        // A client that goes on talking while it waits is not one of ours.
        if self.waiting && self.decoder.buffered() > MAX_HEAD {
            return Received::End;
        }
        let room = self.decoder.room();
        let space = room.capacity() - room.len();
        match recv(&self.stream, spare_capacity(room), RecvFlags::DONTWAIT) {
            Ok((0, _)) => Received::End,
            Ok((count, _)) => {
                self.decoder.appended(count);
                // A second read that only finds nothing is a system call too many.
                if count < space {
                    Received::Last
                } else {
                    Received::Bytes
                }
            }
            Err(Errno::AGAIN) => Received::Nothing,
            Err(Errno::INTR) => Received::Bytes,
            Err(_) => Received::End,
        }
    }

    /// The next complete call. `admit` sees each call before its body is read and
    /// says how long that may be, or why the call is refused: a refused call's
    /// body costs no memory.
    ///
    /// # Errors
    /// When the client does not speak HTTP.
    pub fn next_call(
        &mut self,
        admit: impl Fn(&Route) -> Result<usize, Refusal>,
    ) -> Result<Option<Call>, HttpError> {
        while !self.waiting && !self.closing {
            match self.decoder.advance()? {
                Progress::NeedMore => return Ok(None),
                Progress::Head(head) => self.begin(head, &admit),
                Progress::Complete(body) => {
                    let Some(Incoming { head, route }) = self.incoming.take() else {
                        return Err(HttpError::Malformed);
                    };
                    self.waiting = true;
                    self.keep_alive = head.keep_alive;
                    return Ok(Some(Call {
                        route,
                        content_type: head.content_type,
                        error_type: head.error_type,
                        body,
                    }));
                }
            }
        }
        Ok(None)
    }

    fn begin(&mut self, head: Head, admit: impl Fn(&Route) -> Result<usize, Refusal>) {
        let route = Route::of(head.method, &head.target);
        let admitted = route.and_then(|route| admit(&route).map(|cap| (route, cap)));
        let route = match admitted {
            Ok((route, cap)) => {
                self.decoder.keep(cap);
                Ok(route)
            }
            Err(refusal) => {
                self.decoder.discard();
                Err(refusal)
            }
        };
        if head.expects_continue {
            self.output.push(reply::CONTINUE.to_vec());
        }
        self.incoming = Some(Incoming { head, route });
    }

    /// Queues the response to the call that is waiting.
    pub fn reply(&mut self, reply: Reply) {
        let reply = reply.closing(!self.keep_alive);
        reply.write_to(&mut self.output);
        self.waiting = false;
        self.closing |= reply.closes();
    }

    /// Sends what is queued, as far as the socket takes it.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        self.output.send(&self.stream)
    }

    /// Whether there is something that the socket did not take yet.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether a call is waiting for its response.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Whether nothing is going on.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.waiting && !self.has_output() && self.incoming.is_none() && self.decoder.is_idle()
    }

    /// Whether the connection has served its last request.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.closing && !self.has_output()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
