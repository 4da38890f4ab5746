//! Identifiers that the agent makes up.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use snapback_proto::ids::RequestId;
use snapback_vmm::snapshot::manifest::SnapshotId;

/// Fills `bytes` from the kernel's generator.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)?;
    }
    Ok(())
}

/// A fresh request id.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn new_request_id() -> io::Result<RequestId> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    Ok(RequestId::from_random(bytes))
}

/// A fresh snapshot id.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn new_snapshot_id() -> io::Result<SnapshotId> {
    let mut bytes = [0; 8];
    random(&mut bytes)?;
    let text = format!("s-{:016x}", u64::from_ne_bytes(bytes));
    text.parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// One microVM's life, from the start of its process to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct EnvironmentId(u64);

/// A string is not an environment id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an environment id is `env-` and 16 lower-case hexadecimal digits, and this is not one")]
pub struct InvalidEnvironmentId;

impl EnvironmentId {
    /// A fresh one.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 8];
        random(&mut bytes)?;
        Ok(Self(u64::from_ne_bytes(bytes)))
    }

    /// One of a chosen number, for tests.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for EnvironmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "env-{:016x}", self.0)
    }
}

impl FromStr for EnvironmentId {
    type Err = InvalidEnvironmentId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("env-").ok_or(InvalidEnvironmentId)?;
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() != 16 || !digits.bytes().all(lower_hex) {
            return Err(InvalidEnvironmentId);
        }
        u64::from_str_radix(digits, 16)
            .map(Self)
            .map_err(|_| InvalidEnvironmentId)
    }
}

impl From<EnvironmentId> for String {
    fn from(id: EnvironmentId) -> Self {
        id.to_string()
    }
}

/// A trace of a request's own, not sampled: X-Ray's header, as Lambda makes it when a
/// caller gives none.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn new_trace_id() -> io::Result<String> {
    let (mut root, mut parent) = ([0; 12], [0; 8]);
    random(&mut root)?;
    random(&mut parent)?;
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (root, parent) = (hex(&root), hex(&parent));
    Ok(format!(
        "Root=1-{seconds:08x}-{root};Parent={parent};Sampled=0"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text_form_and_nothing_else_does() {
        let id = EnvironmentId::from_number(0xabc);
        assert_eq!(id.to_string(), "env-0000000000000abc");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "env-",
            "env-../../../../../",
            "env-+000000000000abc",
            "snap-0000000000000abc",
        ] {
            assert!(bad.parse::<EnvironmentId>().is_err(), "{bad}");
        }
        assert_ne!(new_snapshot_id().unwrap(), new_snapshot_id().unwrap());
    }
}
