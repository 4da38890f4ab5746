//! The agent's end of a VMM's control socket.
//!
//! A task reads the socket all the time, so that an event or the end of the
//! process is seen while nobody waits for a reply. Commands go one at a time,
//! each with a bound; after the first one that failed the client refuses the
//! next, because the reply could be another command's.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use snapback_proto::control::{
    Command, ControlError, Event, Failure, Reply, VmmMessage, receive, send,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::fate::{Cause, Fate};
use crate::ids::EnvironmentId;

/// A reply that is no failure, with the descriptors that came with it.
#[derive(Debug)]
pub struct Answer {
    /// The reply.
    pub reply: Reply,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}

/// A command to a VMM process failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The packet could not be sent.
    #[error("{environment}: `{command}` could not be sent")]
    Send {
        /// Which environment.
        environment: EnvironmentId,
        /// Which command.
        command: &'static str,
        /// Why.
        #[source]
        source: ControlError,
    },
    /// No reply within the bound.
    #[error("{environment}: `{command}` was not answered within {limit:?}")]
    Timeout {
        /// Which environment.
        environment: EnvironmentId,
        /// Which command.
        command: &'static str,
        /// The bound.
        limit: Duration,
    },
    /// The microVM ended.
    #[error("{environment}: the microVM ended during `{command}`: {cause}")]
    Ended {
        /// Which environment.
        environment: EnvironmentId,
        /// Which command.
        command: &'static str,
        /// Why.
        cause: Cause,
    },
    /// The VMM could not do it.
    #[error(
        "{environment}: `{command}` failed: {}: {}{}",
        failure.operation, failure.reason, Section(failure.section.as_deref())
    )]
    Failed {
        /// Which environment.
        environment: EnvironmentId,
        /// Which command.
        command: &'static str,
        /// What the VMM says.
        failure: Failure,
    },
    /// The reply belongs to another command.
    #[error("{environment}: `{command}` was answered by something else")]
    Unexpected {
        /// Which environment.
        environment: EnvironmentId,
        /// Which command.
        command: &'static str,
    },
    /// An earlier command failed.
    #[error("{environment}: `{command}` was not sent because an earlier command failed")]
    InDoubt {
        /// Which environment.
        environment: EnvironmentId,
        /// Which command.
        command: &'static str,
    },
}

impl CommandError {
    /// Which command.
    #[must_use]
    pub const fn command(&self) -> &'static str {
        match self {
            Self::Send { command, .. }
            | Self::Timeout { command, .. }
            | Self::Ended { command, .. }
            | Self::Failed { command, .. }
            | Self::Unexpected { command, .. }
            | Self::InDoubt { command, .. } => command,
        }
    }

    /// The snapshot section that is to blame, when one is.
    #[must_use]
    pub fn section(&self) -> Option<&str> {
        match self {
            Self::Failed { failure, .. } => failure.section.as_deref(),
            _ => None,
        }
    }
}

struct Section<'a>(Option<&'a str>);

impl std::fmt::Display for Section<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(section) => write!(f, " (section: {section})"),
            None => Ok(()),
        }
    }
}

/// Sends commands to one VMM process.
#[derive(Debug)]
pub struct ControlClient {
    environment: EnvironmentId,
    socket: Arc<UnixDatagram>,
    replies: mpsc::Receiver<Answer>,
    fate: Fate,
    in_doubt: bool,
    reader: AbortHandle,
}

impl Drop for ControlClient {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl ControlClient {
    /// Takes over a non-blocking socket and starts reading it.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub fn new(environment: EnvironmentId, socket: OwnedFd, fate: Fate) -> io::Result<Self> {
        let socket = Arc::new(packet_socket(socket)?);
        let (sender, replies) = mpsc::channel(1);
        let reader = tokio::spawn(read(Arc::clone(&socket), sender, fate.clone())).abort_handle();
        Ok(Self {
            environment,
            socket,
            replies,
            fate,
            in_doubt: false,
            reader,
        })
    }

    /// Sends a command and waits for its reply, at most `limit` in total. A reply
    /// of failure is an error.
    ///
    /// # Errors
    /// When the command is not sent, not answered in time, or fails. Nothing is
    /// sent after that.
    pub async fn command(
        &mut self,
        command: &Command,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Answer, CommandError> {
        let (environment, name) = (self.environment, command.name());
        if std::mem::replace(&mut self.in_doubt, true) {
            return Err(CommandError::InDoubt {
                environment,
                command: name,
            });
        }
        let exchange = self.exchange(command, name, fds);
        let answer = tokio::time::timeout(limit, exchange)
            .await
            .unwrap_or_else(|_| {
                Err(CommandError::Timeout {
                    environment,
                    command: name,
                    limit,
                })
            })?;
        if let Reply::Failed(failure) = answer.reply {
            return Err(CommandError::Failed {
                environment,
                command: name,
                failure,
            });
        }
        self.in_doubt = false;
        Ok(answer)
    }

    /// The error for an answer that belongs to another command. Nothing is sent
    /// after that.
    pub fn unexpected(&mut self, command: &Command) -> CommandError {
        self.in_doubt = true;
        CommandError::Unexpected {
            environment: self.environment,
            command: command.name(),
        }
    }

    async fn exchange(
        &mut self,
        command: &Command,
        name: &'static str,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer, CommandError> {
        let environment = self.environment;
        self.transmit(command, fds)
            .await
            .map_err(|source| match self.fate.known() {
                Some(cause) => CommandError::Ended {
                    environment,
                    command: name,
                    cause,
                },
                None => CommandError::Send {
                    environment,
                    command: name,
                    source,
                },
            })?;
        match self.replies.recv().await {
            Some(answer) => Ok(answer),
            None => {
                let cause = self.fate.sealed().await;
                Err(CommandError::Ended {
                    environment,
                    command: name,
                    cause,
                })
            }
        }
    }

    async fn transmit(
        &self,
        command: &Command,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ControlError> {
        loop {
            self.socket.writable().await?;
            match ready_io(&self.socket, Interest::WRITABLE, |socket| {
                send(socket, command, fds)
            }) {
                Err(error) if would_block(&error) => {}
                done => return done,
            }
        }
    }
}

/// Reads packets until the socket ends; the sender's end tells the client.
async fn read(socket: Arc<UnixDatagram>, replies: mpsc::Sender<Answer>, fate: Fate) {
    let cause = loop {
        match next(&socket).await {
            Ok((VmmMessage::Event(Event::Stopped(reason)), _)) => {
                // Replies may still come: only the end of the socket ends reading.
                fate.seal(Cause::Stopped(reason));
            }
            Ok((VmmMessage::Reply(reply), fds)) => {
                if replies.try_send(Answer { reply, fds }).is_err() {
                    // Two replies to one command.
                    break Cause::Protocol(Arc::new(ControlError::TooLong));
                }
            }
            Err(ControlError::Closed) => break Cause::Gone,
            Err(error) => break Cause::Protocol(Arc::new(error)),
        }
    };
    fate.seal(cause);
}

async fn next(socket: &UnixDatagram) -> Result<(VmmMessage, Vec<OwnedFd>), ControlError> {
    loop {
        socket.readable().await?;
        match ready_io(socket, Interest::READABLE, |socket| receive(socket)) {
            Err(error) if would_block(&error) => {}
            done => return done,
        }
    }
}

/// tokio has no type for `SOCK_SEQPACKET`; its datagram socket only lends the
/// readiness, the calls are ours.
fn packet_socket(socket: OwnedFd) -> io::Result<UnixDatagram> {
    UnixDatagram::from_std(socket.into())
}

/// Makes a call on a socket that is said to be ready, and takes `WouldBlock` for
/// the news that it is not.
fn ready_io<T>(
    socket: &UnixDatagram,
    interest: Interest,
    call: impl FnOnce(&UnixDatagram) -> Result<T, ControlError>,
) -> Result<T, ControlError> {
    let mut failure = None;
    let done = socket.try_io(interest, || {
        call(socket).map_err(|error| match error {
            ControlError::Io(error) => error,
            other => {
                failure = Some(other);
                io::ErrorKind::Other.into()
            }
        })
    });
    done.map_err(|error| failure.unwrap_or(ControlError::Io(error)))
}

fn would_block(error: &ControlError) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error, ControlError::Io(error) if matches!(error.kind(), WouldBlock | Interrupted))
}

#[cfg(test)]
mod tests;
