//! What the agent and guest-init say to each other on the invocation channel.
//!
//! ```text
//!  guest-init                                   agent
//!     │ Hello ───────────────────────────────────► │  after boot
//!     │ ◄─────────────────────────────────── Init  │
//!     │ Log* ────────────────────────────────────► │
//!     │ Ready | InitFailed ──────────────────────► │  snapshot here
//!     ┆                                            ┆
//!     │ ◄───────────────────────────────── Resume  │  each request, on a fresh socket
//!     │ Resumed ─────────────────────────────────► │
//!     │ ◄───────────────────────────────── Invoke  │  payload: the event
//!     │ Log* ────────────────────────────────────► │
//!     │ Response | Failed | RuntimeExited ───────► │  payload: the answer
//! ```
//!
//! After the last message of a request the agent resets the microVM; guest-init
//! never sees a second request in one life of its memory.

use serde::{Deserialize, Serialize};

use crate::ids::RequestId;

/// Agent to guest-init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// Start the function's runtime. Answered by `Ready` or `InitFailed`.
    Init(Init),
    /// A restored guest becomes one of its own. Answered by `Resumed`.
    Resume(Resume),
    /// Run the function; the frame's payload is the event.
    Invoke(Invoke),
}

/// How to start the function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// The function's name, for `AWS_LAMBDA_FUNCTION_NAME`.
    pub function: String,
    /// The version, for `AWS_LAMBDA_FUNCTION_VERSION`.
    pub version: String,
    /// `_HANDLER`.
    pub handler: String,
    /// `AWS_LAMBDA_FUNCTION_MEMORY_SIZE`, in MiB.
    pub memory_mib: u32,
    /// The function's own environment variables.
    pub environment: Vec<(String, String)>,
    /// Wall clock of the host, in nanoseconds since the Unix epoch.
    pub wall_clock_ns: u64,
}

/// What makes a restored guest unlike every other one of its snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Restore generation, counted by the agent; `Resumed` repeats it.
    pub generation: u64,
    /// Fresh bytes from the host's generator.
    #[serde(with = "entropy")]
    pub entropy: [u8; ENTROPY_LEN],
    /// Wall clock of the host, in nanoseconds since the Unix epoch.
    pub wall_clock_ns: u64,
}

/// Bytes of entropy that come with a [`Resume`].
pub const ENTROPY_LEN: usize = 64;

/// One request, as the headers of `invocation/next` describe it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invoke {
    /// `Lambda-Runtime-Aws-Request-Id`.
    pub request: RequestId,
    /// `Lambda-Runtime-Deadline-Ms`: milliseconds since the Unix epoch.
    pub deadline_ms: u64,
    /// `Lambda-Runtime-Invoked-Function-Arn`.
    pub function_arn: String,
    /// `Lambda-Runtime-Trace-Id`.
    pub trace_id: Option<String>,
    /// `Lambda-Runtime-Client-Context`, already decoded from base64.
    pub client_context: Option<String>,
    /// `Lambda-Runtime-Aws-Tenant-Id`.
    pub tenant_id: Option<String>,
}

/// guest-init to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestMessage {
    /// guest-init is up and waits for `Init`.
    Hello {
        /// guest-init's release, for logs.
        release: String,
    },
    /// The function is parked at its ready point.
    Ready {
        /// Where it is parked.
        at: ReadyPoint,
    },
    /// The function did not reach its ready point; payload: Lambda's error JSON.
    InitFailed {
        /// For example `Runtime.ImportModuleError`.
        error_type: String,
    },
    /// Entropy is credited and the clock is set.
    Resumed {
        /// From the `Resume` that is confirmed.
        generation: u64,
    },
    /// The function answered; payload: the answer.
    Response {
        /// The request that is answered.
        request: RequestId,
        /// The answer's media type.
        content_type: String,
    },
    /// The function failed; payload: Lambda's error JSON.
    Failed {
        /// The request that failed.
        request: RequestId,
        /// `Lambda-Runtime-Function-Error-Type`, when the runtime gave one.
        error_type: Option<String>,
    },
    /// The runtime's process ended before it answered.
    RuntimeExited {
        /// The request that was running.
        request: RequestId,
        /// How it ended.
        status: ExitStatus,
    },
    /// Output of the function or its runtime; payload: the bytes, at most
    /// [`MAX_LOG_CHUNK`].
    Log {
        /// Which of the two.
        stream: LogStream,
    },
}

/// Where a runtime is parked when its snapshot is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadyPoint {
    /// In `GET invocation/next`.
    Next,
    /// In `GET restore/next`: its hooks run first after a restore.
    RestoreNext,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// One of a process's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Largest payload of a [`GuestMessage::Log`], in bytes.
pub const MAX_LOG_CHUNK: usize = 64 * 1024;

/// serde knows arrays up to 32 elements: this one is carried as a tuple of two.
mod entropy {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::ENTROPY_LEN;

    const HALF: usize = ENTROPY_LEN / 2;

    pub fn serialize<S: Serializer>(bytes: &[u8; ENTROPY_LEN], to: S) -> Result<S::Ok, S::Error> {
        let (mut low, mut high) = ([0_u8; HALF], [0_u8; HALF]);
        low.copy_from_slice(&bytes[..HALF]);
        high.copy_from_slice(&bytes[HALF..]);
        (low, high).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; ENTROPY_LEN], D::Error> {
        let (low, high) = <([u8; HALF], [u8; HALF])>::deserialize(from)?;
        let mut bytes = [0; ENTROPY_LEN];
        bytes[..HALF].copy_from_slice(&low);
        bytes[HALF..].copy_from_slice(&high);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{read_frame, write_frame};

    #[test]
    fn entropy_crosses_the_wire_in_order() {
        let mut entropy = [0; ENTROPY_LEN];
        for (index, byte) in entropy.iter_mut().enumerate() {
            *byte = u8::try_from(index).unwrap();
        }
        let sent = HostMessage::Resume(Resume {
            generation: 3,
            entropy,
            wall_clock_ns: 5,
        });
        let mut wire = Vec::new();
        write_frame(&mut wire, &sent, b"").unwrap();
        let (got, _) = read_frame::<HostMessage>(&mut wire.as_slice()).unwrap();
        assert_eq!(got, sent);
    }
}
