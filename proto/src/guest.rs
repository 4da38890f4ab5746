//! What the agent and guest-init say to each other on the invocation channel.
//!
//! ```text
//!  guest-init                                   agent
//!     │ Hello ───────────────────────────────────► │  after boot
//!     │ ◄─────────────────────────────────── Init  │
//!     │ Log* ────────────────────────────────────► │
//!     │ Ready | InitFailed ──────────────────────► │  snapshot here
//!     ┆                                            ┆
//!     │ ◄───────────────────────────────── Gather  │  once, in a microVM of that snapshot
//!     │ Gathered ────────────────────────────────► │  snapshot here, which takes its place
//!     ┆                                            ┆
//!     │ ◄───────────────────────── Resume, Invoke  │  each request, on a fresh socket; payload: the event
//!     │ Resumed ─────────────────────────────────► │
//!     │ (Holding, Delivered) ────────────────────► │  while hooks run after a restore
//!     │ Log* ────────────────────────────────────► │
//!     │ Response ────────────────────────────────► │  payload: the answer,
//!     │  or StreamStarted StreamChunk* StreamEnded │  or a piece of it each,
//!     │  or Failed, RestoreFailed, RuntimeExited   │  or Lambda's error JSON
//!     │ Log*, Finished ──────────────────────────► │  only when one of these said `more`
//! ```
//!
//! A guest that did not confirm its `Resume` has not looked at the `Invoke` behind it: the
//! state machine of guest-init has no way from the snapshot's state to a request but through
//! the renewal, and the agent takes nothing but `Log` before `Resumed`.
//!
//! After the last message of a request the agent resets the microVM; guest-init
//! never sees a second request in one life of its memory.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ids::RequestId;

/// Agent to guest-init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// Start the function's runtime. Answered by `Ready` or `InitFailed`.
    Init(Init),
    /// A restored guest becomes one of its own. Answered by `Resumed`.
    Resume(Resume),
    /// Run the function; the frame's payload is the event. Only after `Resume`.
    Invoke(Invoke),
    /// Move the pages that requests touch next to each other, as far as that can be.
    /// Answered by `Gathered`; only to a guest that was not resumed.
    Gather(Gather),
}

/// Numbers of guest-physical pages, in the order in which they are to lie; at most
/// [`MAX_GATHERED`] of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gather {
    /// What requests write: next to what else of it cannot be moved.
    pub written: Vec<u32>,
    /// What they only read: where nothing is written.
    pub read: Vec<u32>,
}

/// Most pages of each kind in one [`Gather`].
pub const MAX_GATHERED: usize = 4096;

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
    /// `AWS_REGION` and `AWS_DEFAULT_REGION`.
    pub region: String,
    /// `AWS_EXECUTION_ENV`; functions that bring their own runtime have none.
    pub execution_env: Option<String>,
    /// What the function's and the platform's log lines look like.
    pub log_format: LogFormat,
    /// `AWS_LAMBDA_LOG_LEVEL`, for functions that log JSON.
    pub log_level: Option<String>,
    /// Whether the function's processes may open vsock sockets. The agent always
    /// denies it: the function would speak to the host past guest-init. Tests of
    /// the vsock device allow it.
    pub vsock: VsockAccess,
    /// The function's own environment variables.
    pub environment: Vec<(String, String)>,
    /// Wall clock of the host, in nanoseconds since the Unix epoch.
    pub wall_clock_ns: u64,
    /// What `/tmp` may hold, in MiB.
    pub ephemeral_storage_mib: u32,
}

/// Lambda's `LogFormat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    /// Lines of text.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Whether processes other than guest-init may open `AF_VSOCK` sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VsockAccess {
    /// They get an error.
    #[default]
    Denied,
    /// As any process of a machine with the device.
    Allowed,
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
    /// Who the machine is from now on.
    pub identity: Identity,
}

/// The names that programs take a machine by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// 1 to 64 letters, digits, `-` or `.`.
    pub hostname: String,
    /// `/etc/machine-id`.
    pub machine_id: [u8; 16],
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: [u8; 16],
    /// For `/etc/resolv.conf`; at most [`MAX_NAME_SERVERS`].
    pub name_servers: Vec<IpAddr>,
}

/// As many as a resolver looks at.
pub const MAX_NAME_SERVERS: usize = 3;

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
    /// The runtime's hooks still run: the request waits for them, at most once.
    Holding {
        /// Which request.
        request: RequestId,
    },
    /// The request that waited has begun: its time counts from here.
    Delivered {
        /// Which request.
        request: RequestId,
    },
    /// The function answered; payload: the answer.
    Response {
        /// The request that is answered.
        request: RequestId,
        /// The answer's media type.
        content_type: String,
        /// Extensions still work: [`Finished`](Self::Finished) follows.
        more: bool,
    },
    /// The function begins an answer that comes in pieces.
    StreamStarted {
        /// The request that is answered.
        request: RequestId,
        /// The answer's media type.
        content_type: String,
    },
    /// A piece of the answer that was begun; payload: the bytes, at most
    /// [`MAX_STREAM_CHUNK`].
    StreamChunk,
    /// The answer that was begun is complete, or will never be.
    StreamEnded {
        /// The request that is answered.
        request: RequestId,
        /// What went wrong after the answer was begun. Payload then: the function's
        /// error, as posted (base64 of Lambda's error JSON), if it posted one.
        error_type: Option<String>,
        /// As in [`Response`](Self::Response).
        more: bool,
    },
    /// The function failed; payload: Lambda's error JSON.
    Failed {
        /// The request that failed.
        request: RequestId,
        /// `Lambda-Runtime-Function-Error-Type`, when the runtime gave one.
        error_type: Option<String>,
        /// As in [`Response`](Self::Response).
        more: bool,
    },
    /// The hooks that run after a restore failed; payload: Lambda's error JSON.
    /// The microVM is not to be used any more.
    RestoreFailed {
        /// The request that failed with them.
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
        /// The guest's kernel killed a process for want of memory meanwhile.
        out_of_memory: bool,
        /// As in [`Response`](Self::Response).
        more: bool,
    },
    /// Runtime and extensions have nothing left to do for this request.
    Finished {
        /// Which request.
        request: RequestId,
    },
    /// Output of the function or its runtime; payload: the bytes, at most
    /// [`MAX_LOG_CHUNK`].
    Log {
        /// Which of the two.
        stream: LogStream,
    },
    /// Pages were moved, and everything waits as before.
    Gathered {
        /// How many.
        moved: u32,
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
    /// Either stream of an extension's process.
    Extension,
}

/// Largest payload of a [`GuestMessage::StreamChunk`], in bytes.
pub const MAX_STREAM_CHUNK: usize = 64 * 1024;

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
            identity: Identity {
                hostname: "host".to_owned(),
                machine_id: [1; 16],
                boot_id: [2; 16],
                name_servers: vec![IpAddr::from([10, 0, 0, 1])],
            },
        });
        let mut wire = Vec::new();
        write_frame(&mut wire, &sent, b"").unwrap();
        let (got, _) = read_frame::<HostMessage>(&mut wire.as_slice()).unwrap();
        assert_eq!(got, sent);
    }
}
