//! Why a microVM ended. Several observers may see its end (the control socket,
//! the pager, the owner); the first cause is kept.

use std::fmt;
use std::io;
use std::sync::Arc;

use snapback_proto::control::{ControlError, StopReason};
use tokio::sync::watch;

/// Why a microVM will not run again.
#[derive(Debug, Clone)]
pub enum Cause {
    /// Its guest stopped by itself.
    Stopped(StopReason),
    /// Its process closed the control socket: it ended.
    Gone,
    /// Its process said something that is not in the protocol.
    Protocol(Arc<ControlError>),
    /// A page of its memory could not be had.
    Page(Arc<io::Error>),
    /// Its owner has no more use for it.
    Retired,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(StopReason::PoweredOff) => f.write_str("the guest powered off"),
            Self::Stopped(StopReason::Rebooted) => f.write_str("the guest rebooted"),
            Self::Stopped(StopReason::Panicked) => f.write_str("the guest's kernel panicked"),
            Self::Stopped(StopReason::Broken(reason)) => {
                write!(f, "the guest cannot go on: {reason}")
            }
            Self::Gone => f.write_str("the VMM process ended"),
            Self::Protocol(error) => write!(f, "the VMM process broke the protocol: {error}"),
            Self::Page(error) => write!(f, "a page of its memory could not be had: {error}"),
            Self::Retired => f.write_str("it was retired"),
        }
    }
}

/// A place for one [`Cause`], shared by everybody who may see a microVM end.
#[derive(Debug, Clone)]
pub struct Fate(Arc<watch::Sender<Option<Cause>>>);

impl Default for Fate {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Fate {
    /// Notes why the microVM ended, unless a cause is known already. The process
    /// is killed as soon as its reaper sees it.
    pub fn seal(&self, cause: Cause) {
        self.0.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(cause);
            }
            first
        });
    }

    /// The cause, once there is one.
    #[must_use]
    pub fn known(&self) -> Option<Cause> {
        self.0.borrow().clone()
    }

    /// Waits until the microVM has ended. Bounded only by the microVM's life.
    pub async fn sealed(&self) -> Cause {
        let mut receiver = self.0.subscribe();
        loop {
            if let Some(cause) = receiver.borrow_and_update().clone() {
                return cause;
            }
            if receiver.changed().await.is_err() {
                // Not possible: `self` holds the sender.
                return Cause::Gone;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_cause_is_kept() {
        let fate = Fate::default();
        assert!(fate.known().is_none());
        fate.seal(Cause::Stopped(StopReason::PoweredOff));
        fate.seal(Cause::Gone);
        assert!(matches!(
            fate.sealed().await,
            Cause::Stopped(StopReason::PoweredOff)
        ));
    }
}
