//! Where the guest's serial output goes: a pipe that may be full.
//!
//! The pipe is the bound: what does not fit is dropped and counted. A guest that
//! floods its console can so neither block its vCPU nor use host memory.

use std::io::{self, Write};
use std::os::fd::OwnedFd;

use crate::sys::fds::set_nonblocking;

/// A non-blocking pipe, or nothing. Writes always succeed.
#[derive(Debug, Default)]
pub(super) struct Output {
    pipe: Option<OwnedFd>,
    dropped: u64,
}

impl Output {
    /// Output into `pipe`, which is made non-blocking.
    pub(super) fn to(pipe: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&pipe)?;
        Ok(Self {
            pipe: Some(pipe),
            dropped: 0,
        })
    }

    /// Bytes that did not fit the pipe.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &self.pipe {
            // A closed reader is like a full pipe: the guest must not notice.
            Some(pipe) => rustix::io::write(pipe, bytes).unwrap_or(0),
            None => bytes.len(),
        };
        let lost = u64::try_from(bytes.len().saturating_sub(written)).unwrap_or(u64::MAX);
        self.dropped = self.dropped.saturating_add(lost);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
