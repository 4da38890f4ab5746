//! Identifiers that cross a process boundary.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A function's name: 1 to 64 of `A-Z a-z 0-9 - _`, as Lambda's
/// `CreateFunction` has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FunctionName(String);

/// A string is not a function name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a function name: use 1 to 64 letters, digits, '-' or '_' \
     (it has {length} characters)"
)]
pub struct InvalidFunctionName {
    name: String,
    length: usize,
}

impl FunctionName {
    /// Longest name, in characters.
    pub const MAX_LENGTH: usize = 64;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FunctionName {
    type Err = InvalidFunctionName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > Self::MAX_LENGTH || !name.chars().all(allowed) {
            let length = name.chars().count();
            let name = name.chars().take(Self::MAX_LENGTH).collect();
            return Err(InvalidFunctionName { name, length });
        }
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for FunctionName {
    type Error = InvalidFunctionName;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<FunctionName> for String {
    fn from(name: FunctionName) -> Self {
        name.0
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A request's identity: the text form of a UUID, as `AwsRequestId` has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestId(String);

/// A string is not a request id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a request id is 36 characters of hexadecimal digits and '-', and this is not one")]
pub struct InvalidRequestId;

impl RequestId {
    /// Makes a version 4 UUID (RFC 9562, section 5.4) of 16 random bytes.
    #[must_use]
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        use fmt::Write as _;

        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let mut text = String::with_capacity(36);
        for (index, byte) in bytes.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RequestId {
    type Err = InvalidRequestId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_hexdigit() || c == '-';
        if text.len() != 36 || !text.chars().all(allowed) {
            return Err(InvalidRequestId);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_names_are_lambdas() {
        assert!("word-report_2".parse::<FunctionName>().is_ok());
        for bad in ["", "a b", "../etc", "ü", &"x".repeat(65)] {
            assert!(bad.parse::<FunctionName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn request_ids_are_version_4_uuids() {
        let id = RequestId::from_random([0xff; 16]);
        assert_eq!(id.as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(id.as_str().parse::<RequestId>(), Ok(id));
        assert!("x".repeat(36).parse::<RequestId>().is_err());
    }
}
