//! Requests out of a stream of bytes.
//!
//! ```text
//!            empty line              keep()/discard()            last byte
//!   Head ───────────────► Verdict ──────────────────► Body ───────────────► Head
//!                         (Progress::Head)            (Progress::Complete)
//! ```
//!
//! Between head and body the owner decides whether the body is kept or streamed
//! (given out piece by piece as it comes, `Progress::Part`); a body that is not
//! wanted, or longer than its cap, is read past and costs no memory.

use snapback_proto::guest::MAX_STREAM_CHUNK;

use super::head::{Framing, Head};
use super::{HttpError, MAX_DISCARDED, MAX_HEAD};

/// Longest line of a chunked body (a chunk's size with extensions, a trailer).
const MAX_LINE: usize = 4096;
/// Most trailer lines of a chunked body.
const MAX_TRAILERS: usize = 64;
/// Longest trailer: an error with its stack trace, in base64, is one.
const MAX_TRAILER: usize = 256 * 1024;
/// How much room a read gets for a head.
const HEAD_READ: usize = 4096;
/// How much room a read gets for a body of unknown or unwanted length.
const BODY_READ: usize = 64 * 1024;

/// Where the decoder is in its stream.
#[derive(Debug)]
pub enum Progress {
    /// More bytes are needed.
    NeedMore,
    /// A head is complete: call `keep` or `discard`, then go on.
    Head(Head),
    /// The next piece of a streamed body.
    Part(Vec<u8>),
    /// The request is complete.
    Complete(Body),
}

/// What became of a request's body.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// All of it.
    Kept(Vec<u8>),
    /// It was longer than the cap, and has been dropped.
    TooLarge,
    /// Nobody wanted it.
    Discarded,
    /// It was given out in pieces; how its sender says that it ended.
    Streamed(Trailers),
}

/// What a runtime says after a streamed body, if something went wrong meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trailers {
    /// `Lambda-Runtime-Function-Error-Type`.
    pub error_type: Option<String>,
    /// `Lambda-Runtime-Function-Error-Body`: base64 of Lambda's error JSON.
    pub error_body: Option<String>,
}

#[derive(Debug)]
enum Stage {
    Head { scanned: usize },
    Verdict(Framing),
    Length { left: u64 },
    ChunkSize,
    ChunkData { left: u64 },
    ChunkEnd,
    Trailers { lines: usize },
}

#[derive(Debug)]
enum Sink {
    Keep { body: Vec<u8>, cap: usize },
    TooLarge { dropped: u64 },
    Discard { dropped: u64 },
    Stream { trailers: Trailers },
}

/// Takes bytes in, gives requests out.
#[derive(Debug)]
pub struct RequestDecoder {
    stage: Stage,
    sink: Sink,
    /// Received and not yet consumed.
    buffer: Vec<u8>,
}

impl Default for RequestDecoder {
    fn default() -> Self {
        Self {
            stage: Stage::Head { scanned: 0 },
            sink: Sink::Discard { dropped: 0 },
            buffer: Vec::new(),
        }
    }
}

impl RequestDecoder {
    /// Where the next bytes of the stream are to be appended: a buffer with room.
    /// A long body's bytes go straight to where they stay.
    pub fn room(&mut self) -> &mut Vec<u8> {
        if let (Stage::Length { left }, Sink::Keep { body, .. }) = (&self.stage, &mut self.sink)
            && self.buffer.is_empty()
        {
            // `left` is below the sink's cap, so it fits.
            body.reserve_exact(usize::try_from(*left).unwrap_or(0).max(1));
            return body;
        }
        self.buffer.reserve(match self.stage {
            Stage::Head { .. } => HEAD_READ,
            _ => BODY_READ,
        });
        &mut self.buffer
    }

    /// Tells the decoder that `count` bytes were appended to what
    /// [`room`](Self::room) returned.
    pub fn appended(&mut self, count: usize) {
        if let (Stage::Length { left }, Sink::Keep { body, .. }) = (&mut self.stage, &mut self.sink)
            && self.buffer.is_empty()
        {
            let ours = usize::try_from(*left).unwrap_or(usize::MAX).min(count);
            // Bytes beyond the body belong to the next request.
            self.buffer = body.split_off(body.len() - (count - ours));
            *left -= u64::try_from(ours).unwrap_or(*left);
        }
    }

    /// Whether the stream is between two requests.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Head { .. }) && self.buffer.is_empty()
    }

    /// Whether a body is being given out in pieces.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        matches!(self.sink, Sink::Stream { .. })
    }

    /// Bytes received ahead of what has been consumed.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Keep the body of the head just returned, if it has at most `cap` bytes.
    pub fn keep(&mut self, cap: usize) {
        self.begin_body(Sink::Keep {
            body: Vec::new(),
            cap,
        });
    }

    /// Read past the body of the head just returned.
    pub fn discard(&mut self) {
        self.begin_body(Sink::Discard { dropped: 0 });
    }

    /// Give the body of the head just returned out as it comes.
    pub fn stream(&mut self) {
        self.begin_body(Sink::Stream {
            trailers: Trailers::default(),
        });
    }

    fn begin_body(&mut self, sink: Sink) {
        if let Stage::Verdict(framing) = self.stage {
            self.sink = match (sink, framing) {
                (Sink::Keep { cap, .. }, Framing::Length(length))
                    if usize::try_from(length).is_ok_and(|length| length > cap) =>
                {
                    Sink::TooLarge { dropped: 0 }
                }
                (sink, _) => sink,
            };
            self.stage = match framing {
                Framing::Length(left) => Stage::Length { left },
                Framing::Chunked => Stage::ChunkSize,
            };
        }
    }

    /// Consumes what has been received, up to the next thing worth telling.
    ///
    /// # Errors
    /// When the stream is not HTTP or breaks a bound. It cannot be used further.
    pub fn advance(&mut self) -> Result<Progress, HttpError> {
        loop {
            match self.stage {
                Stage::Head { scanned } => return self.advance_head(scanned),
                Stage::Verdict(_) => return Ok(Progress::NeedMore),
                Stage::Length { left: 0 } => return Ok(self.complete()),
                Stage::Length { left } => match self.take_body(left)? {
                    Taken::Nothing => return Ok(Progress::NeedMore),
                    Taken::Bytes { left } => self.stage = Stage::Length { left },
                    Taken::Part { left, part } => {
                        self.stage = Stage::Length { left };
                        return Ok(Progress::Part(part));
                    }
                },
                Stage::ChunkSize => {
                    let Some(line) = self.take_line(MAX_LINE)? else {
                        return Ok(Progress::NeedMore);
                    };
                    self.stage = match chunk_size(&line)? {
                        0 => Stage::Trailers { lines: 0 },
                        left => Stage::ChunkData { left },
                    };
                }
                Stage::ChunkData { left: 0 } => self.stage = Stage::ChunkEnd,
                Stage::ChunkData { left } => match self.take_body(left)? {
                    Taken::Nothing => return Ok(Progress::NeedMore),
                    Taken::Bytes { left } => self.stage = Stage::ChunkData { left },
                    Taken::Part { left, part } => {
                        self.stage = Stage::ChunkData { left };
                        return Ok(Progress::Part(part));
                    }
                },
                Stage::ChunkEnd => match self.take_line(MAX_LINE)? {
                    None => return Ok(Progress::NeedMore),
                    Some(line) if line == b"\r\n" => self.stage = Stage::ChunkSize,
                    Some(_) => return Err(HttpError::Malformed),
                },
                Stage::Trailers { lines } => match self.take_line(MAX_TRAILER)? {
                    None => return Ok(Progress::NeedMore),
                    Some(line) if line == b"\r\n" => return Ok(self.complete()),
                    Some(_) if lines == MAX_TRAILERS => return Err(HttpError::HeadTooLarge),
                    Some(line) => {
                        if let Sink::Stream { trailers } = &mut self.sink {
                            trailers.note(&line);
                        }
                        self.stage = Stage::Trailers { lines: lines + 1 };
                    }
                },
            }
        }
    }

    fn advance_head(&mut self, scanned: usize) -> Result<Progress, HttpError> {
        // Empty lines before a request are to be ignored (RFC 9112, section 2.2).
        if scanned == 0 {
            let blank = |b: &&u8| matches!(b, b'\r' | b'\n');
            let leading = self.buffer.iter().take_while(blank).count();
            self.buffer.drain(..leading);
        }
        let Some(end) = head_end(&self.buffer, scanned) else {
            if self.buffer.len() > MAX_HEAD {
                return Err(HttpError::HeadTooLarge);
            }
            // The end may have begun in the last three bytes.
            let scanned = self.buffer.len().saturating_sub(3);
            self.stage = Stage::Head { scanned };
            return Ok(Progress::NeedMore);
        };
        if end > MAX_HEAD {
            return Err(HttpError::HeadTooLarge);
        }
        let head = Head::parse(&self.buffer[..end])?;
        self.buffer.drain(..end);
        self.stage = Stage::Verdict(head.framing);
        Ok(Progress::Head(head))
    }

    /// Moves body bytes from the buffer to the sink.
    fn take_body(&mut self, left: u64) -> Result<Taken, HttpError> {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX);
        let mut count = wanted.min(self.buffer.len());
        if matches!(self.sink, Sink::Stream { .. }) {
            count = count.min(MAX_STREAM_CHUNK);
        }
        if count == 0 {
            return Ok(Taken::Nothing);
        }
        let taken = u64::try_from(count).unwrap_or(u64::MAX);
        match &mut self.sink {
            Sink::Keep { body, cap } if body.len() + count <= *cap => {
                body.extend_from_slice(&self.buffer[..count]);
            }
            Sink::Keep { .. } => self.sink = Sink::TooLarge { dropped: taken },
            Sink::TooLarge { dropped } | Sink::Discard { dropped } => {
                *dropped = dropped.saturating_add(taken);
                if *dropped > MAX_DISCARDED {
                    return Err(HttpError::BodyTooLarge);
                }
            }
            Sink::Stream { .. } => {
                let part = self.buffer.drain(..count).collect();
                let left = left - taken;
                return Ok(Taken::Part { left, part });
            }
        }
        self.buffer.drain(..count);
        let left = left - taken;
        Ok(Taken::Bytes { left })
    }

    /// The next line of the buffer with its end, if it is complete.
    fn take_line(&mut self, most: usize) -> Result<Option<Vec<u8>>, HttpError> {
        let window = &self.buffer[..self.buffer.len().min(most)];
        match window.iter().position(|&b| b == b'\n') {
            Some(at) => Ok(Some(self.buffer.drain(..=at).collect())),
            None if window.len() == most => Err(HttpError::HeadTooLarge),
            None => Ok(None),
        }
    }

    fn complete(&mut self) -> Progress {
        self.stage = Stage::Head { scanned: 0 };
        let sink = std::mem::replace(&mut self.sink, Sink::Discard { dropped: 0 });
        if self.buffer.is_empty() {
            // A head of up to 1 MiB may have passed through.
            self.buffer = Vec::new();
        }
        Progress::Complete(match sink {
            Sink::Keep { body, .. } => Body::Kept(body),
            Sink::TooLarge { .. } => Body::TooLarge,
            Sink::Discard { .. } => Body::Discarded,
            Sink::Stream { trailers } => Body::Streamed(trailers),
        })
    }
}

/// What became of the body bytes in the buffer; `left` are still to come.
enum Taken {
    Nothing,
    Bytes { left: u64 },
    Part { left: u64, part: Vec<u8> },
}

impl Trailers {
    /// Keeps a trailer's line if it is one of these.
    fn note(&mut self, line: &[u8]) {
        let Some((name, value)) = str::from_utf8(line).ok().and_then(|l| l.split_once(':')) else {
            return;
        };
        let value = || Some(value.trim().to_owned());
        if name.eq_ignore_ascii_case("lambda-runtime-function-error-type") {
            self.error_type = value();
        } else if name.eq_ignore_ascii_case("lambda-runtime-function-error-body") {
            self.error_body = value();
        }
    }
}

/// Where the first empty line ends. The search goes on at `from`.
fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let newlines = (from..bytes.len()).filter(|&at| bytes[at] == b'\n');
    for at in newlines {
        match bytes.get(at + 1..) {
            Some([b'\n', ..]) => return Some(at + 2),
            Some([b'\r', b'\n', ..]) => return Some(at + 3),
            _ => {}
        }
    }
    None
}

fn chunk_size(line: &[u8]) -> Result<u64, HttpError> {
    match httparse::parse_chunk_size(line) {
        Ok(httparse::Status::Complete((_, size))) => Ok(size),
        _ => Err(HttpError::Malformed),
    }
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
