//! Frames of the invocation channel.
//!
//! ```text
//!  0        4        8        12      16
//!  ┌────────┬────────┬────────┬────────┬──────────────┬───────────────┐
//!  │ magic  │ version│ message│ payload│ message      │ payload       │
//!  │ "SNPB" │ u32    │ length │ length │ (postcard)   │ (raw bytes)   │
//!  └────────┴────────┴────────┴────────┴──────────────┴───────────────┘
//! ```
//!
//! All numbers are little endian. The payload is a request's or a response's
//! body and never passes through the message encoder. A reader takes the header,
//! checks it against the caps, and only then allocates.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::{WireError, decode, encode};

/// Size of a frame's header, in bytes.
pub const HEADER_LEN: usize = 16;

/// Largest message part, in bytes: a function's environment (4 KiB as Lambda
/// has it, here with room) is the largest thing in one.
pub const MAX_MESSAGE: usize = 256 * 1024;

/// Largest body of a request or response that a caller may send, in bytes.
pub const MAX_BODY: usize = 6 * 1024 * 1024;

/// Largest payload part, in bytes. The runtime API allows a response 100 bytes
/// above [`MAX_BODY`], and error bodies are capped by the same number.
pub const MAX_PAYLOAD: usize = MAX_BODY + 100;

const MAGIC: [u8; 4] = *b"SNPB";
const _: () = assert!(HEADER_LEN == 4 * size_of::<u32>());

/// A frame could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed or ended within a frame.
    #[error("the invocation channel failed")]
    Io(#[from] io::Error),
    /// The bytes do not begin a frame.
    #[error("the invocation channel carries something that is not a frame")]
    Magic,
    /// The other side speaks another version.
    #[error("the other side of the invocation channel speaks version {found}, not {expected}")]
    Version {
        /// What the header says.
        found: u32,
        /// What this program speaks.
        expected: u32,
    },
    /// A part is longer than its cap.
    #[error("a frame's {part} has {length} bytes, more than the {cap} allowed")]
    TooLong {
        /// "message" or "payload".
        part: &'static str,
        /// Its length, in bytes.
        length: u64,
        /// The most that is allowed, in bytes.
        cap: usize,
    },
    /// The message part is not what it should be.
    #[error(transparent)]
    Message(#[from] WireError),
}

/// A checked header: both lengths are within their caps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    message: usize,
    payload: usize,
}

impl FrameHeader {
    /// Checks the 16 bytes that begin a frame.
    ///
    /// # Errors
    /// When they are no header, of another version, or announce too much.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if bytes[..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        let expected = u32::from(crate::CHANNEL_VERSION);
        if word(4) != expected {
            return Err(FrameError::Version {
                found: word(4),
                expected,
            });
        }
        Ok(Self {
            message: capped("message", u64::from(word(8)), MAX_MESSAGE)?,
            payload: capped("payload", u64::from(word(12)), MAX_PAYLOAD)?,
        })
    }

    /// How many bytes follow the header, in total.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.message + self.payload
    }

    /// Splits what followed the header into message and payload.
    ///
    /// # Errors
    /// When the message part is not a `T`, or `body` is not [`Self::body_len`] long.
    pub fn split<T: DeserializeOwned>(
        &self,
        mut body: Vec<u8>,
    ) -> Result<(T, Vec<u8>), FrameError> {
        if body.len() != self.body_len() {
            return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let payload = body.split_off(self.message);
        Ok((decode("channel", &body)?, payload))
    }
}

fn capped(part: &'static str, length: u64, cap: usize) -> Result<usize, FrameError> {
    match usize::try_from(length) {
        Ok(fits) if fits <= cap => Ok(fits),
        _ => Err(FrameError::TooLong { part, length, cap }),
    }
}

/// The header and message part of a frame whose payload of `payload_len` bytes
/// the caller writes right after it.
///
/// # Errors
/// When a part is over its cap or the message cannot be encoded.
pub fn frame_head<T: Serialize>(message: &T, payload_len: usize) -> Result<Vec<u8>, FrameError> {
    let message = encode("channel", message)?;
    let too_long = |part, length: usize, cap| {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        FrameError::TooLong { part, length, cap }
    };
    if message.len() > MAX_MESSAGE {
        return Err(too_long("message", message.len(), MAX_MESSAGE));
    }
    if payload_len > MAX_PAYLOAD {
        return Err(too_long("payload", payload_len, MAX_PAYLOAD));
    }
    let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let mut head = Vec::with_capacity(HEADER_LEN + message.len());
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&u32::from(crate::CHANNEL_VERSION).to_le_bytes());
    head.extend_from_slice(&word(message.len()));
    head.extend_from_slice(&word(payload_len));
    head.extend_from_slice(&message);
    Ok(head)
}

/// Writes one frame to a blocking stream.
///
/// # Errors
/// As [`frame_head`], or when the stream fails.
pub fn write_frame<T: Serialize>(
    stream: &mut impl Write,
    message: &T,
    payload: &[u8],
) -> Result<(), FrameError> {
    let head = frame_head(message, payload.len())?;
    stream.write_all(&head)?;
    stream.write_all(payload)?;
    stream.flush()?;
    Ok(())
}

/// Reads one frame from a blocking stream.
///
/// # Errors
/// When the stream fails or ends, or the frame breaks a rule of this module.
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> Result<(T, Vec<u8>), FrameError> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header)?;
    let header = FrameHeader::parse(&header)?;
    let mut body = vec![0; header.body_len()];
    stream.read_exact(&mut body)?;
    header.split(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &(7_u32, "seven"), b"body").unwrap();
        let (message, payload): ((u32, String), _) = read_frame(&mut wire.as_slice()).unwrap();
        assert_eq!(message, (7, "seven".to_owned()));
        assert_eq!(payload, b"body");
    }

    #[test]
    fn lengths_over_the_cap_are_refused_before_the_body_is_read() {
        for (at, part) in [(8, "message"), (12, "payload")] {
            let mut wire = frame_head(&0_u8, 0).unwrap();
            wire[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            let error = read_frame::<u8>(&mut wire.as_slice()).unwrap_err();
            assert!(matches!(error, FrameError::TooLong { part: p, .. } if p == part));
        }
        assert!(frame_head(&0_u8, MAX_PAYLOAD + 1).is_err());
        assert!(frame_head(&0_u8, MAX_PAYLOAD).is_ok());
    }

    #[test]
    fn another_version_is_named() {
        let mut wire = frame_head(&0_u8, 0).unwrap();
        wire[4] = 99;
        let error = read_frame::<u8>(&mut wire.as_slice()).unwrap_err();
        assert!(matches!(
            error,
            FrameError::Version {
                found: 99,
                expected: 1
            }
        ));
    }

    #[test]
    fn bytes_left_over_in_the_message_are_refused() {
        let header = FrameHeader {
            message: 3,
            payload: 0,
        };
        let error = header.split::<u8>(vec![1, 2, 3]).unwrap_err();
        assert!(matches!(
            error,
            FrameError::Message(WireError::Trailing { extra: 2, .. })
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_frame::<(u64, String)>(&mut bytes.as_slice());
        }
    }
}
