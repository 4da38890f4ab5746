//! Resume: a guest that was let go is made unlike every other of its snapshot, before any
//! request reaches it.

use snapback_proto::guest::{ENTROPY_LEN, GuestMessage, HostMessage, Identity, Resume};

use super::channel::{ChannelError, Reader, Writer, out_of_turn};
use super::invoke::InvokeError;
use super::logs::FunctionLog;
use super::wall_clock_ns;
use crate::ids::{self, EnvironmentId};

/// Tells a guest what is new since its snapshot, and waits until it confirms that it took
/// it. Bounded by the caller.
///
/// # Errors
/// When it says anything else, or there is no entropy. No request may be sent then.
pub(super) async fn resume(
    environment: EnvironmentId,
    reader: &mut Reader<'_>,
    writer: &mut Writer<'_>,
    generation: u64,
    log: &mut FunctionLog,
) -> Result<(), InvokeError> {
    let mut entropy = [0; ENTROPY_LEN];
    ids::random(&mut entropy).map_err(|source| InvokeError::Entropy {
        environment,
        source,
    })?;
    let unconfirmed = |source| InvokeError::Unconfirmed {
        environment,
        source,
    };
    let identity = identity().map_err(|source| InvokeError::Entropy {
        environment,
        source,
    })?;
    let message = Resume {
        generation,
        entropy,
        wall_clock_ns: wall_clock_ns(),
        identity,
    };
    writer
        .send(&HostMessage::Resume(message), &[])
        .await
        .map_err(unconfirmed)?;
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
fn identity() -> std::io::Result<Identity> {
    let (mut machine_id, mut boot_id, mut name) = ([0; 16], [0; 16], [0; 6]);
    ids::random(&mut machine_id)?;
    ids::random(&mut boot_id)?;
    ids::random(&mut name)?;
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Identity {
        hostname: format!("function-{name}"),
        machine_id,
        boot_id,
        // Functions have no network yet.
        name_servers: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::thread::JoinHandle;

    use snapback_proto::frame::{read_frame, write_frame};
    use snapback_proto::guest::LogStream;

    use super::super::channel::Channel;
    use super::*;

    const GENERATION: u64 = 7;

    /// A guest that answers `Resume` with these messages and hangs up, or waits for the
    /// end. The result is how many bytes came after `Resume`.
    fn guest(answers: Vec<GuestMessage>, hangs_up: bool) -> (Channel, JoinHandle<usize>) {
        let (channel, theirs) = Channel::pair().unwrap();
        let mut socket = UnixStream::from(theirs);
        socket.set_nonblocking(false).unwrap();
        let guest = std::thread::spawn(move || {
            let (message, _) = read_frame::<HostMessage>(&mut socket).unwrap();
            let HostMessage::Resume(resume) = message else {
                panic!("{message:?}");
            };
            assert_eq!(resume.generation, GENERATION);
            assert_ne!(resume.entropy, [0; ENTROPY_LEN]);
            // In one piece: nobody may read on after the first wrong one.
            let mut said = Vec::new();
            for answer in &answers {
                write_frame(&mut said, answer, b"").unwrap();
            }
            socket.write_all(&said).unwrap();
            if hangs_up {
                return 0;
            }
            let mut rest = Vec::new();
            // What it said and nobody read makes the end an error.
            let _ = socket.read_to_end(&mut rest);
            rest.len()
        });
        (channel, guest)
    }

    async fn resumed(channel: &mut Channel) -> Result<(), InvokeError> {
        let id = EnvironmentId::from_number(1);
        let mut log = FunctionLog::new(id, "test");
        let (mut reader, mut writer) = channel.split();
        resume(id, &mut reader, &mut writer, GENERATION, &mut log).await
    }

    fn confirmation(generation: u64) -> GuestMessage {
        GuestMessage::Resumed { generation }
    }

    const LOG: GuestMessage = GuestMessage::Log {
        stream: LogStream::Stdout,
    };

    #[tokio::test]
    async fn a_guest_that_confirms_its_own_generation_is_ready_for_a_request() {
        let (mut channel, guest) = guest(vec![LOG, LOG, confirmation(GENERATION)], false);
        resumed(&mut channel).await.unwrap();
        drop(channel);
        assert_eq!(guest.join().unwrap(), 0);
    }

    #[tokio::test]
    async fn a_guest_that_confirms_anything_else_or_nothing_is_an_error_and_hears_no_more() {
        let finished = GuestMessage::Finished {
            request: ids::new_request_id().unwrap(),
        };
        for (answers, hangs_up) in [
            (vec![confirmation(GENERATION - 1)], false),
            (
                vec![confirmation(GENERATION + 1), confirmation(GENERATION)],
                false,
            ),
            (
                vec![LOG, GuestMessage::StreamChunk, confirmation(GENERATION)],
                false,
            ),
            (vec![finished, confirmation(GENERATION)], false),
            (vec![], true),
            (vec![LOG], true),
        ] {
            let (mut channel, guest) = guest(answers.clone(), hangs_up);
            let error = resumed(&mut channel).await.unwrap_err();
            let unconfirmed = matches!(error, InvokeError::Unconfirmed { .. });
            assert!(unconfirmed, "{answers:?}: {error}");
            drop(channel);
            assert_eq!(guest.join().unwrap(), 0, "{answers:?}");
        }
    }

    #[tokio::test]
    async fn no_two_machines_are_told_the_same() {
        let mut told = Vec::new();
        for _ in 0..2 {
            let (mut channel, theirs) = Channel::pair().unwrap();
            let mut socket = UnixStream::from(theirs);
            socket.set_nonblocking(false).unwrap();
            let guest = std::thread::spawn(move || {
                let (message, _) = read_frame::<HostMessage>(&mut socket).unwrap();
                write_frame(&mut socket, &confirmation(GENERATION), b"").unwrap();
                message
            });
            resumed(&mut channel).await.unwrap();
            let HostMessage::Resume(resume) = guest.join().unwrap() else {
                panic!("it was told something else first");
            };
            told.push(resume);
        }
        let (one, other) = (&told[0], &told[1]);
        assert_ne!(one.entropy, other.entropy);
        assert_ne!(one.identity.hostname, other.identity.hostname);
        assert_ne!(one.identity.machine_id, other.identity.machine_id);
        assert_ne!(one.identity.boot_id, other.identity.boot_id);
    }
}
