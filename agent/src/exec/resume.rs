//! Resume: a guest that is let go is made unlike every other of its snapshot, before its
//! request reaches the function.
//!
//! The request is in the channel right behind the `Resume`, so that no time passes between
//! the two. guest-init does not look at it before it has renewed the guest (its table of
//! states has no other way), and ends the guest if it cannot. Here, nothing of a request is
//! taken before the confirmation.

use std::fmt::Write as _;

use snapback_proto::guest::{ENTROPY_LEN, GuestMessage, HostMessage, Identity, Resume};

use super::channel::{ChannelError, Reader, out_of_turn};
use super::invoke::InvokeError;
use super::logs::FunctionLog;
use super::wall_clock_ns;
use crate::ids::{self, EnvironmentId};

/// Fresh bytes that one `Resume` takes: entropy, machine id, boot id and host name.
const FRESH: usize = ENTROPY_LEN + 16 + 16 + 6;

/// What is new for a guest since its snapshot.
///
/// # Errors
/// When the kernel gives no random bytes.
pub(super) fn message(generation: u64) -> std::io::Result<HostMessage> {
    let mut fresh = [0; FRESH];
    ids::random(&mut fresh)?;
    let mut rest = fresh.as_slice();
    let entropy = take::<ENTROPY_LEN>(&mut rest);
    let identity = identity(take(&mut rest), take(&mut rest), take(&mut rest));
    Ok(HostMessage::Resume(Resume {
        generation,
        entropy,
        wall_clock_ns: wall_clock_ns(),
        identity,
    }))
}

/// The next `N` of the bytes; their number is [`FRESH`].
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk() {
        Some((chunk, after)) => {
            *rest = after;
            *chunk
        }
        None => [0; N],
    }
}

/// Waits until a guest confirms that it took a `Resume`. Bounded by the caller.
///
/// # Errors
/// When it says anything else first.
pub(super) async fn confirmed(
    environment: EnvironmentId,
    reader: &mut Reader<'_>,
    generation: u64,
    log: &mut FunctionLog,
) -> Result<(), InvokeError> {
    let unconfirmed = |source| InvokeError::Unconfirmed {
        environment,
        source,
    };
    loop {
        match reader.receive().await.map_err(unconfirmed)? {
            (
                GuestMessage::Resumed {
                    generation: confirmed,
                },
                _,
            ) if confirmed == generation => {
                return Ok(());
            }
            (
                GuestMessage::Resumed {
                    generation: confirmed,
                },
                _,
            ) => {
                let error = ChannelError::Generation {
                    confirmed,
                    expected: generation,
                };
                return Err(unconfirmed(error));
            }
            (GuestMessage::Log { stream }, bytes) => log.push(stream, &bytes),
            (message, _) => return Err(unconfirmed(out_of_turn(&message, "Resumed or Log"))),
        }
    }
}

/// Names that no other request's machine has had. They tell nothing of this host.
fn identity(machine_id: [u8; 16], boot_id: [u8; 16], name: [u8; 6]) -> Identity {
    let mut hostname = "function-".to_owned();
    for byte in name {
        // Writing to a String cannot fail.
        let _ = write!(hostname, "{byte:02x}");
    }
    Identity {
        hostname,
        machine_id,
        boot_id,
        // Functions have no network yet.
        name_servers: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use snapback_proto::frame::write_frame;
    use snapback_proto::guest::LogStream;

    use super::super::channel::Channel;
    use super::*;

    const GENERATION: u64 = 7;

    /// What becomes of a guest that says this and hangs up, or waits.
    async fn told(answers: &[GuestMessage], hangs_up: bool) -> Result<(), InvokeError> {
        let id = EnvironmentId::from_number(1);
        let (mut channel, theirs) = Channel::pair().unwrap();
        let mut socket = UnixStream::from(theirs);
        for answer in answers {
            write_frame(&mut socket, answer, b"").unwrap();
        }
        socket.flush().unwrap();
        let socket = (!hangs_up).then_some(socket);
        let mut log = FunctionLog::new(id, "test");
        let (mut reader, _writer) = channel.split();
        let confirmed = confirmed(id, &mut reader, GENERATION, &mut log).await;
        drop(socket);
        confirmed
    }

    fn confirmation(generation: u64) -> GuestMessage {
        GuestMessage::Resumed { generation }
    }

    const LOG: GuestMessage = GuestMessage::Log {
        stream: LogStream::Stdout,
    };

    #[tokio::test]
    async fn a_guest_that_confirms_its_own_generation_is_believed() {
        let said = [LOG, LOG, confirmation(GENERATION)];
        told(&said, false).await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_says_anything_else_first_or_nothing_is_not() {
        let request = ids::new_request_id().unwrap();
        let finished = GuestMessage::Finished {
            request: request.clone(),
        };
        let response = GuestMessage::Response {
            request: request.clone(),
            content_type: "application/json".to_owned(),
            more: false,
        };
        let holding = GuestMessage::Holding { request };
        let own = confirmation(GENERATION);
        for (answers, hangs_up) in [
            (vec![confirmation(GENERATION - 1)], false),
            (vec![confirmation(GENERATION + 1), own.clone()], false),
            (vec![LOG, GuestMessage::StreamChunk, own.clone()], false),
            (vec![finished, own.clone()], false),
            (vec![response, own.clone()], false),
            (vec![holding, own], false),
            (vec![], true),
            (vec![LOG], true),
        ] {
            let error = told(&answers, hangs_up).await.unwrap_err();
            let unconfirmed = matches!(error, InvokeError::Unconfirmed { .. });
            assert!(unconfirmed, "{answers:?}: {error}");
        }
    }

    #[test]
    fn no_two_machines_are_told_the_same() {
        let told = [1, 2].map(|generation| match message(generation).unwrap() {
            HostMessage::Resume(resume) => resume,
            other => panic!("{other:?}"),
        });
        let [one, other] = &told;
        for resume in &told {
            assert_ne!(resume.entropy, [0; ENTROPY_LEN]);
            assert_eq!(resume.identity.hostname.len(), "function-".len() + 12);
        }
        assert_ne!(one.entropy, other.entropy);
        assert_ne!(one.identity.hostname, other.identity.hostname);
        assert_ne!(one.identity.machine_id, other.identity.machine_id);
        assert_ne!(one.identity.boot_id, other.identity.boot_id);
    }
}
