//! The client against a VMM made of a thread.

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use snapback_proto::control::{Devices, Run, StopReason};

use super::*;

const LIMIT: Duration = Duration::from_secs(10);
const RUN: Command = Command::Run(Run {
    hub: false,
    barrier: false,
});
const RUNNING: Reply = Reply::Running { entered_ns: 7 };

fn pair(fate: &Fate) -> (ControlClient, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let id = EnvironmentId::from_number(1);
    (ControlClient::new(id, ours, fate.clone()).unwrap(), theirs)
}

/// A VMM that answers every command with what `answer` makes of it.
fn vmm(socket: OwnedFd, answer: impl Fn(Command) -> Option<VmmMessage> + Send + 'static) {
    rustix::io::ioctl_fionbio(&socket, false).unwrap();
    std::thread::spawn(move || {
        while let Ok((command, _)) = receive::<Command>(&socket) {
            match answer(command) {
                Some(message) => send(&socket, &message, &[]).unwrap(),
                None => return,
            }
        }
    });
}

#[tokio::test]
async fn a_reply_reaches_the_one_who_asked() {
    let (mut client, socket) = pair(&Fate::default());
    vmm(socket, |_| Some(VmmMessage::Reply(RUNNING)));
    for _ in 0..3 {
        let answer = client.command(&RUN, &[], LIMIT).await.unwrap();
        assert_eq!(answer.reply, RUNNING);
    }
}

#[tokio::test]
async fn a_command_without_answer_ends_in_time_and_is_the_last() {
    let (mut client, _socket) = pair(&Fate::default());
    let short = Duration::from_millis(20);
    let error = client
        .command(&Command::RESET, &[], short)
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        CommandError::Timeout {
            command: "reset",
            ..
        }
    ));
    let error = client.command(&RUN, &[], LIMIT).await.unwrap_err();
    assert!(matches!(error, CommandError::InDoubt { .. }));
}

#[tokio::test]
async fn the_end_of_the_process_is_seen_during_a_command_and_while_idle() {
    let fate = Fate::default();
    let (mut client, socket) = pair(&fate);
    vmm(socket, |_| None);
    let error = client.command(&RUN, &[], LIMIT).await.unwrap_err();
    assert!(
        matches!(
            error,
            CommandError::Ended {
                cause: Cause::Gone,
                ..
            }
        ),
        "{error}"
    );

    let fate = Fate::default();
    let (_client, socket) = pair(&fate);
    drop(socket);
    assert!(matches!(fate.sealed().await, Cause::Gone));
}

#[tokio::test]
async fn an_event_is_not_taken_for_a_reply() {
    let fate = Fate::default();
    let (mut client, socket) = pair(&fate);
    send(
        &socket,
        &VmmMessage::Event(Event::Stopped(StopReason::PoweredOff)),
        &[],
    )
    .unwrap();
    vmm(socket, |_| Some(VmmMessage::Reply(RUNNING)));
    client.command(&RUN, &[], LIMIT).await.unwrap();
    assert!(matches!(
        fate.sealed().await,
        Cause::Stopped(StopReason::PoweredOff)
    ));
}

#[tokio::test]
async fn a_failure_names_operation_reason_and_section() {
    let (mut client, socket) = pair(&Fate::default());
    vmm(socket, |_| {
        Some(VmmMessage::Reply(Reply::Failed(Failure {
            operation: "load state".to_owned(),
            reason: "hash does not match".to_owned(),
            section: Some("processor".to_owned()),
        })))
    });
    let restore = Command::Restore {
        devices: Devices::default(),
        lazy: true,
        written: Vec::new(),
        whole: None,
        run: None,
    };
    let error = client.command(&restore, &[], LIMIT).await.unwrap_err();
    assert_eq!(error.section(), Some("processor"));
    let text = error.to_string();
    assert!(
        text.contains("load state: hash does not match (section: processor)"),
        "{text}"
    );
}
