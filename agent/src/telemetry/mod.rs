//! What the agent tells its operator: one log on standard error.
//!
//! Filtered by `SNAPBACK_LOG` (`tracing`'s directives, default `info`). Output of
//! guests and of VMM processes goes there line by line, with bounds.

mod lines;

use std::io::IsTerminal as _;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tracing_subscriber::EnvFilter;

pub use lines::Lines;

use crate::ids::EnvironmentId;

/// The environment variable with the filter's directives.
pub const FILTER_VARIABLE: &str = "SNAPBACK_LOG";

/// Sends this process's log to standard error. Does nothing when a log is set up
/// already.
pub fn init() {
    let filter =
        EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// Where a log line of an environment came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The guest's serial console.
    Console,
    /// The VMM process's standard error.
    Vmm,
}

/// Logs what `source` says, line by line, until it ends.
pub async fn log_lines(environment: EnvironmentId, origin: Origin, source: impl AsyncRead) {
    let mut source = std::pin::pin!(source);
    let mut lines = Lines::default();
    let mut buffer = vec![0; 4096];
    let show = |line: &str| match origin {
        Origin::Console => tracing::debug!(target: "snapback::console", %environment, "{line}"),
        Origin::Vmm => tracing::warn!(target: "snapback::vmm", %environment, "{line}"),
    };
    while let Ok(read) = source.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        lines.push(&buffer[..read], show);
    }
    lines.finish(show);
}
