//! As much of HTTP/1.1 as a Runtime API needs, on bytes alone: no socket here.
//!
//! * [`decoder`]: requests out of a stream of bytes, everything bounded.
//! * [`head`]: the first lines of a request, checked.
//! * [`reply`]: responses into bytes.

pub mod decoder;
pub mod head;
pub mod reply;

pub use decoder::{Body, Progress, RequestDecoder, Trailers};
pub use head::{Head, Method};
pub use reply::Reply;

/// Most bytes of a request's first lines and headers. Generous because the
/// Python runtime sends a whole stack trace as a header, up to 1 MiB of it.
pub const MAX_HEAD: usize = 1024 * 1024 + 64 * 1024;

/// Most headers of a request.
pub const MAX_HEADERS: usize = 64;

/// Most bytes of a body that nobody wants and that is read to its end all the
/// same, so that the client gets to read the answer.
pub const MAX_DISCARDED: u64 = 64 * 1024 * 1024;

/// What came is not a request that this server understands. The connection ends
/// after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The bytes break the grammar.
    #[error("the request is not HTTP/1.1")]
    Malformed,
    /// The head is longer than [`MAX_HEAD`] or has more than [`MAX_HEADERS`] headers.
    #[error("the request's headers are too large")]
    HeadTooLarge,
    /// How long the body is cannot be told for sure.
    #[error("the request's length is ambiguous")]
    AmbiguousLength,
    /// A transfer coding other than `chunked`.
    #[error("the request's transfer coding is not supported")]
    TransferCoding,
    /// The body goes on beyond [`MAX_DISCARDED`].
    #[error("the request's body is too large")]
    BodyTooLarge,
}

impl HttpError {
    /// The status that says so.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed | Self::AmbiguousLength => 400,
            Self::HeadTooLarge => 431,
            Self::TransferCoding => 501,
            Self::BodyTooLarge => 413,
        }
    }
}
