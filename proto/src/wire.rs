//! Encoding shared by both wires: postcard, strict about trailing bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A message could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The bytes are not a message of the expected type.
    #[error("the {what} message cannot be decoded")]
    Decode {
        /// Which kind of message was expected.
        what: &'static str,
        /// What postcard says.
        #[source]
        source: postcard::Error,
    },
    /// The message could not be turned into bytes.
    #[error("the {what} message cannot be encoded")]
    Encode {
        /// Which kind of message it was.
        what: &'static str,
        /// What postcard says.
        #[source]
        source: postcard::Error,
    },
    /// A message was followed by bytes that belong to nothing.
    #[error("the {what} message is followed by {extra} bytes that belong to nothing")]
    Trailing {
        /// Which kind of message it was.
        what: &'static str,
        /// How many bytes were left over.
        extra: usize,
    },
}

pub(crate) fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, WireError> {
    postcard::to_stdvec(value).map_err(|source| WireError::Encode { what, source })
}

pub(crate) fn decode<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, WireError> {
    let (value, rest) =
        postcard::take_from_bytes(bytes).map_err(|source| WireError::Decode { what, source })?;
    if !rest.is_empty() {
        return Err(WireError::Trailing {
            what,
            extra: rest.len(),
        });
    }
    Ok(value)
}
