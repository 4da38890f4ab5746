//! An answer that comes in pieces.
//!
//! Each piece goes to the channel as it comes. While the channel has enough to
//! send, nothing is read from the runtime's connection: a caller that reads slowly
//! slows the function down, and nothing is buffered without bound.

use snapback_proto::guest::GuestMessage;

use super::calls::media_type;
use super::{Guest, GuestError, Streamer};
use crate::http::{Body, Trailers};
use crate::runtime_api::errors::accepted;
use crate::runtime_api::state::{Effect, Event};

/// What Lambda calls an answer whose end never came.
const TRUNCATED: &str = "Runtime.TruncatedResponse";

impl Guest {
    pub(super) fn begin_stream(
        &mut self,
        slot: u8,
        content_type: Option<String>,
    ) -> Result<(), GuestError> {
        // The call was admitted in this very state.
        let Some((state, _)) = self.state.on(Event::StreamStart) else {
            return Ok(());
        };
        self.state = state;
        self.streamer = Some(Streamer {
            slot,
            paused: false,
        });
        self.delivery = None;
        self.drain_logs()?;
        if let Some(request) = self.request.clone() {
            let message = GuestMessage::StreamStarted {
                request,
                content_type: media_type(content_type),
            };
            self.channel.queue(&message, Vec::new())?;
        }
        Ok(())
    }

    pub(super) fn pass_on(&mut self, slot: u8, part: Vec<u8>) -> Result<(), GuestError> {
        if self.streamer.is_some_and(|s| s.slot == slot) {
            self.channel.queue(&GuestMessage::StreamChunk, part)?;
        }
        Ok(())
    }

    /// The body is complete, and says itself whether the function failed meanwhile.
    pub(super) fn end_stream(&mut self, slot: u8, body: Body) -> Result<(), GuestError> {
        let Body::Streamed(Trailers {
            error_type,
            error_body,
        }) = body
        else {
            return Ok(());
        };
        if let Some((state, Effect::EndStream)) = self.state.on(Event::StreamEnd) {
            self.state = state;
            self.finish_stream(error_type, error_body)?;
        }
        self.channel.flush()?;
        self.reply(slot, accepted())
    }

    /// The connection broke. Nothing happens when it was not the stream's.
    pub(super) fn lose_stream(&mut self, slot: u8) -> Result<(), GuestError> {
        if self.streamer.is_none_or(|s| s.slot != slot) {
            return Ok(());
        }
        match self.state.on(Event::StreamLost) {
            Some((state, _)) => {
                self.state = state;
                self.cut_stream()
            }
            None => Ok(()),
        }
    }

    pub(super) fn cut_stream(&mut self) -> Result<(), GuestError> {
        self.finish_stream(Some(TRUNCATED.to_owned()), None)
    }

    fn finish_stream(
        &mut self,
        error_type: Option<String>,
        error_body: Option<String>,
    ) -> Result<(), GuestError> {
        self.streamer = None;
        self.drain_logs()?;
        let status = if error_type.is_none() {
            "success"
        } else {
            "error"
        };
        self.on_answered(status, 0);
        if let Some(request) = self.request.clone() {
            let message = GuestMessage::StreamEnded {
                request,
                error_type,
                more: self.has_more(),
            };
            let body = error_body.unwrap_or_default().into_bytes();
            self.channel.queue(&message, body)?;
        }
        Ok(())
    }
}
