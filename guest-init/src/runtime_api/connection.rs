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

/// What a client says.
#[derive(Debug)]
pub enum Heard {
    /// A complete request.
    Call(Call),
    /// The head of a request whose body comes in pieces.
    StreamBegun {
        /// Its `Content-Type`.
        content_type: Option<String>,
    },
    /// A piece of that body. A `Call` follows the last one.
    Part(Vec<u8>),
}

/// What is done with a request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is kept, up to this many bytes.
    Keep(usize),
    /// It is given out as it comes.
    Stream,
}

/// A complete request.
#[derive(Debug)]
pub struct Call {
    /// Which one, or why it is refused.
    pub route: Result<Route, Refusal>,
    /// Its first lines.
    pub head: Head,
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

    /// The next thing that the client says. `admit` sees each call before its body
    /// is read and says what becomes of that, or why the call is refused: a refused
    /// call's body costs no memory.
    ///
    /// # Errors
    /// When the client does not speak HTTP.
    pub fn hear(
        &mut self,
        admit: impl Fn(&Route, &Head) -> Result<Admission, Refusal>,
    ) -> Result<Option<Heard>, HttpError> {
        while !self.waiting && !self.closing {
            match self.decoder.advance()? {
                Progress::NeedMore => return Ok(None),
                Progress::Head(head) => {
                    let content_type = head.content_type.clone();
                    if self.begin(head, &admit) == Some(Admission::Stream) {
                        return Ok(Some(Heard::StreamBegun { content_type }));
                    }
                }
                Progress::Part(part) => return Ok(Some(Heard::Part(part))),
                Progress::Complete(body) => {
                    let Some(Incoming { head, route }) = self.incoming.take() else {
                        return Err(HttpError::Malformed);
                    };
                    self.waiting = true;
                    self.keep_alive = head.keep_alive;
                    return Ok(Some(Heard::Call(Call { route, head, body })));
                }
            }
        }
        Ok(None)
    }

    fn begin(
        &mut self,
        head: Head,
        admit: impl Fn(&Route, &Head) -> Result<Admission, Refusal>,
    ) -> Option<Admission> {
        let route = Route::of(head.method, &head.target);
        let admitted = route.and_then(|route| admit(&route, &head).map(|how| (route, how)));
        match admitted {
            Ok((_, Admission::Keep(cap))) => self.decoder.keep(cap),
            Ok((_, Admission::Stream)) => self.decoder.stream(),
            Err(_) => self.decoder.discard(),
        }
        let how = admitted.as_ref().ok().map(|(_, how)| *how);
        let route = admitted.map(|(route, _)| route);
        if head.expects_continue {
            self.output.push(reply::CONTINUE.to_vec());
        }
        self.incoming = Some(Incoming { head, route });
        how
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

    /// Whether a body is being given out in pieces.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.decoder.is_streaming()
    }

    /// Whether a call is waiting for its response.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Whether a call has come in part.
    #[must_use]
    pub fn is_hearing(&self) -> bool {
        self.incoming.is_some() || (!self.waiting && !self.decoder.is_idle())
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
