//! What the agent tells its operator: one log on standard error, and figures
//! ([`Metrics`]).
//!
//! Filtered by `SNAPBACK_LOG` (`tracing`'s directives, default `info`). Output of
//! guests and of VMM processes goes there line by line, with bounds.

mod lines;
mod metrics;

use std::collections::VecDeque;
use std::io::IsTerminal as _;

use snapback_proto::control::StopReason;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tracing_subscriber::EnvFilter;

pub use lines::Lines;
pub use metrics::{CONTENT_TYPE, Change, Metrics, RequestEnd, Retirement};

use crate::ids::EnvironmentId;
use crate::process::{Cause, Fate};

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

/// Logs what a VMM process says on standard error, until it ends.
pub async fn log_vmm(environment: EnvironmentId, source: impl AsyncRead) {
    let show = |line: &str| tracing::warn!(target: "snapback::vmm", %environment, "{line}");
    each_line(source, show).await;
}

/// Logs what a guest says on its serial console, until its VMM process ends. That
/// is nothing that an operator wants to see, unless the guest's kernel failed: then
/// its last words are the reason, and come again as warnings.
pub async fn log_console(environment: EnvironmentId, fate: Fate, source: impl AsyncRead) {
    let mut last = LastWords::default();
    each_line(source, |line| {
        tracing::debug!(target: "snapback::console", %environment, "{line}");
        last.note(line);
    })
    .await;
    if let Some(Cause::Stopped(StopReason::Panicked)) = fate.known() {
        for line in last.0 {
            tracing::warn!(target: "snapback::console", %environment, "{line}");
        }
    }
}

/// The last lines of a stream.
#[derive(Debug, Default)]
struct LastWords(VecDeque<String>);

impl LastWords {
    /// A panic's message with registers and a stack of usual depth.
    const LINES: usize = 48;

    fn note(&mut self, line: &str) {
        if self.0.len() == Self::LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }
}

async fn each_line(source: impl AsyncRead, mut show: impl FnMut(&str)) {
    let mut source = std::pin::pin!(source);
    let mut lines = Lines::default();
    let mut buffer = vec![0; 4096];
    while let Ok(read) = source.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        lines.push(&buffer[..read], &mut show);
    }
    lines.finish(show);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_words_are_the_last_lines() {
        let mut last = LastWords::default();
        let text: String = (0..100).map(|line| format!("line {line}\n")).collect();
        each_line(text.as_bytes(), |line| last.note(line)).await;
        let expected: Vec<_> = (52..100).map(|line| format!("line {line}")).collect();
        assert_eq!(Vec::from(last.0), expected);
    }
}
