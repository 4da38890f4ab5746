//! Gather: a snapshot's guest moves the pages that requests touch next to each other, and is
//! snapshotted anew.
//!
//! It goes on in a copy of the snapshot's memory, so nothing that was restored from the
//! snapshot notices. It is not resumed, and hears of no request.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use snapback_proto::control::{Command, Devices, Reply};
use snapback_proto::guest::{Gather, GuestMessage, HostMessage};

use super::build::BuildError;
use super::channel::{Channel, ChannelError, out_of_turn};
use super::logs::FunctionLog;
use super::restore::borrowed;
use super::{Blank, Executor};
use crate::snapshots::Snapshot;

const GOAL: &str = "move its pages";

/// What a new snapshot is made of.
#[derive(Debug)]
pub struct Gathered {
    /// The guest's memory.
    pub memory: OwnedFd,
    /// How many pages were moved.
    pub moved: u32,
}

impl Executor {
    /// Has the guest of `snapshot` move pages, snapshots it, and ends the process. Its
    /// state goes to the file `state`.
    ///
    /// # Errors
    /// When any step fails; nothing is left running then.
    pub async fn gather(
        &self,
        snapshot: &Arc<Snapshot>,
        pages: Gather,
        state: &File,
    ) -> Result<Gathered, BuildError> {
        let mut blank = self.blank(snapshot.machine()).await?;
        let environment = blank.id();
        let source = Arc::clone(snapshot.memory());
        let copied = tokio::task::spawn_blocking(move || source.copy()).await;
        let memory = copied
            .map_err(io::Error::other)
            .flatten()
            .map_err(|source| BuildError::Memory {
                environment,
                source,
            })?;
        let failed = |source| BuildError::Channel {
            environment,
            goal: GOAL,
            source,
        };
        // Open to the end: the guest's end of it is what a restored guest is spoken to by.
        let (mut channel, theirs) = Channel::pair().map_err(|error| failed(error.into()))?;
        self.go_on(&mut blank, snapshot, &memory, theirs).await?;
        let mut log = FunctionLog::new(environment, format_args!("gather {}", snapshot.id()));
        let work = async {
            let message = HostMessage::Gather(pages);
            let moved = moved(&mut channel, &message, &mut log).await;
            moved.map_err(failed)
        };
        let limit_ms = self.timeouts.boot_ms;
        let moved = self.bounded(&blank, GOAL, limit_ms, work).await?;
        self.write_state(&mut blank, state).await?;
        // Nothing may write to the memory any more when it is copied.
        blank.end().await;
        Ok(Gathered { memory, moved })
    }

    /// Lets the snapshot's guest go on in `memory`.
    async fn go_on(
        &self,
        blank: &mut Blank,
        snapshot: &Snapshot,
        memory: &OwnedFd,
        channel: OwnedFd,
    ) -> Result<(), BuildError> {
        let disks = snapshot.disks();
        let mut fds = vec![
            memory.as_fd(),
            snapshot.state(),
            blank.console.as_fd(),
            channel.as_fd(),
        ];
        fds.extend(borrowed(disks));
        let command = Command::Continue {
            devices: Devices::read_only_disks(disks.len()),
        };
        let control = &mut blank.process.control;
        let limit = self.timeouts.command();
        let answer = control.command(&command, &fds, limit).await?;
        match answer.reply {
            Reply::Booted => Ok(()),
            _ => Err(control.unexpected(&command).into()),
        }
    }
}

async fn moved(
    channel: &mut Channel,
    message: &HostMessage,
    log: &mut FunctionLog,
) -> Result<u32, ChannelError> {
    let (mut reader, mut writer) = channel.split();
    writer.send(message, &[]).await?;
    loop {
        match reader.receive().await? {
            (GuestMessage::Gathered { moved }, _) => return Ok(moved),
            (GuestMessage::Log { stream }, bytes) => log.push(stream, &bytes),
            (message, _) => return Err(out_of_turn(&message, "Gathered or Log")),
        }
    }
}
