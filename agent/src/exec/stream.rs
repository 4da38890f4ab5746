//! Answers that come in pieces: passed on while they are produced, or collected.
//!
//! ```text
//!  guest ─ frames ─► exchange ─► Answering ─┬─ bounded queue of pieces ─► caller
//!                                           └─ one body, for a caller who waits for it
//! ```
//!
//! A queue that is full lets `exchange` wait, and with it the channel, the guest
//! and in the end the function: nothing is buffered beyond the queue.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use snapback_proto::frame::MAX_BODY;
use snapback_proto::guest::MAX_STREAM_CHUNK;
use tokio::sync::mpsc;

use super::answer;
use super::channel::{ChannelError, out_of_turn};
use super::invoke::Outcome;

/// Pieces on their way to one caller.
const QUEUE: usize = 4;

/// A part of an answer, on its way to the caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// The answer begins; always the first.
    Started {
        /// Its media type.
        content_type: String,
    },
    /// The next bytes.
    Bytes(Vec<u8>),
}

/// Where the pieces of one answer go.
#[derive(Debug)]
pub struct Sink {
    pieces: mpsc::Sender<Piece>,
    /// The most bytes of an answer.
    limit: u64,
}

impl Sink {
    /// A sink for an answer of at most `limit` bytes, and what comes out of it. The
    /// end of the answer is the end of the pieces.
    #[must_use]
    pub fn new(limit: u64) -> (Self, mpsc::Receiver<Piece>) {
        let (pieces, receiver) = mpsc::channel(QUEUE);
        (Self { pieces, limit }, receiver)
    }

    /// A caller who has gone away misses the rest; the function goes on.
    async fn pass_on(&self, piece: Piece) {
        let _ = self.pieces.send(piece).await;
    }
}

/// One request's answer, as far as it has come.
#[derive(Debug)]
pub struct Answering {
    sink: Option<Sink>,
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    content_type: String,
    length: u64,
    /// Stays empty when there is a sink.
    body: Vec<u8>,
}

impl Answering {
    /// Nothing has come yet. Without a sink the pieces are collected.
    pub const fn new(sink: Option<Sink>) -> Self {
        Self { sink, begun: None }
    }

    /// The most bytes of the answer.
    fn limit(&self) -> u64 {
        let collected = u64::try_from(MAX_BODY).unwrap_or(u64::MAX);
        self.sink.as_ref().map_or(collected, |sink| sink.limit)
    }

    /// Whether the answer has begun, so that no whole one may come any more.
    pub const fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// The answer begins.
    pub async fn start(&mut self, content_type: String) {
        if let Some(sink) = &self.sink {
            let content_type = content_type.clone();
            sink.pass_on(Piece::Started { content_type }).await;
        }
        self.begun = Some(Begun {
            content_type,
            length: 0,
            body: Vec::new(),
        });
    }

    /// More of it. An answer over the limit ends here, as a failure.
    pub async fn push(&mut self, bytes: Vec<u8>) -> Result<Option<Outcome>, ChannelError> {
        let limit = self.limit();
        let Some(begun) = &mut self.begun else {
            let message = snapback_proto::guest::GuestMessage::StreamChunk;
            return Err(out_of_turn(&message, "StreamStarted"));
        };
        begun.length += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if begun.length > limit {
            let (error_type, body) = answer::too_large(limit);
            return Ok(Some(Outcome::FunctionError {
                error_type: Some(error_type),
                body,
            }));
        }
        match &self.sink {
            Some(sink) => {
                // The guest is not to decide how large a caller's messages are.
                for part in parts(bytes) {
                    sink.pass_on(Piece::Bytes(part)).await;
                }
            }
            None => begun.body.extend_from_slice(&bytes),
        }
        Ok(None)
    }

    /// The end. `error_body` is what the function posted: base64 of its error JSON.
    pub fn end(&mut self, error_type: Option<String>, error_body: &[u8]) -> Option<Outcome> {
        let begun = self.begun.take()?;
        Some(match error_type {
            None => Outcome::Response {
                body: begun.body,
                content_type: begun.content_type,
            },
            Some(error_type) => {
                let error_type = answer::error_type(error_type);
                let body = STANDARD
                    .decode(error_body)
                    .ok()
                    .filter(|body| !body.is_empty())
                    .unwrap_or_else(|| answer::stream_broke(&error_type));
                Outcome::FunctionError {
                    error_type: Some(error_type),
                    body,
                }
            }
        })
    }
}

/// Pieces of a length that every caller takes.
pub fn parts(bytes: Vec<u8>) -> Vec<Vec<u8>> {
    if bytes.len() <= MAX_STREAM_CHUNK {
        return vec![bytes];
    }
    bytes.chunks(MAX_STREAM_CHUNK).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn begun(sink: Option<Sink>) -> Answering {
        let mut answering = Answering::new(sink);
        answering.start("text/plain".to_owned()).await;
        answering
    }

    #[tokio::test]
    async fn without_a_sink_the_pieces_become_one_answer() {
        let mut answering = begun(None).await;
        for piece in ["one ", "two"] {
            assert!(answering.push(piece.into()).await.unwrap().is_none());
        }
        let whole = Outcome::Response {
            body: b"one two".to_vec(),
            content_type: "text/plain".to_owned(),
        };
        assert_eq!(answering.end(None, b""), Some(whole));
    }

    #[tokio::test]
    async fn a_caller_who_does_not_read_makes_the_guest_wait() {
        let (sink, mut pieces) = Sink::new(u64::MAX);
        let mut answering = begun(Some(sink)).await;
        for number in 1..QUEUE {
            answering.push(vec![0; number]).await.unwrap();
        }
        let waits = answering.push(vec![0; QUEUE]);
        tokio::pin!(waits);
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        assert!(matches!(pieces.recv().await, Some(Piece::Started { .. })));
        waits.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_over_the_limit_ends_as_a_failure() {
        let (sink, mut pieces) = Sink::new(10);
        let mut answering = begun(Some(sink)).await;
        assert!(answering.push(vec![1; 10]).await.unwrap().is_none());
        let failure = answering.push(vec![1]).await.unwrap();
        assert!(matches!(
            failure,
            Some(Outcome::FunctionError { error_type: Some(t), .. }) if t.contains("TooLarge")
        ));
        drop(answering);
        let mut got = 0;
        while let Some(piece) = pieces.recv().await {
            if let Piece::Bytes(bytes) = piece {
                got += bytes.len();
            }
        }
        assert_eq!(got, 10);
    }

    #[tokio::test]
    async fn a_failure_in_the_middle_carries_what_the_function_said() {
        let mut answering = begun(None).await;
        let json = STANDARD.encode(b"{\"errorType\":\"X\"}");
        let outcome = answering.end(Some("X".to_owned()), json.as_bytes());
        let said = |outcome| match outcome {
            Some(Outcome::FunctionError { body, .. }) => String::from_utf8(body).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(said(outcome), "{\"errorType\":\"X\"}");
        let mut answering = begun(None).await;
        let outcome = answering.end(Some("Runtime.TruncatedResponse".to_owned()), b"not base64");
        assert!(said(outcome).contains("\"errorType\":\"Runtime.TruncatedResponse\""));
    }

    #[tokio::test]
    async fn a_piece_of_nothing_is_out_of_turn() {
        let mut answering = Answering::new(None);
        assert!(answering.push(vec![1]).await.is_err());
        assert_eq!(answering.end(None, b""), None);
    }
}
