//! What a function writes: to the agent's log with the request's id, and the tail
//! of it for the caller.

use std::collections::VecDeque;

use snapback_proto::guest::LogStream;

use super::invoke::{Invocation, Outcome};
use super::platform;

use crate::ids::EnvironmentId;
use crate::telemetry::Lines;

/// Bytes of output that a caller can ask for (`X-Amz-Log-Type: Tail`).
pub const LOG_TAIL: usize = 4096;

/// Bytes of one request's output that go to the agent's log.
const MAX_LOGGED: usize = 1024 * 1024;

/// Collects one request's (or one initialisation's) output.
#[derive(Debug)]
pub struct FunctionLog {
    environment: EnvironmentId,
    /// A request id, or `init`.
    occasion: String,
    stdout: Lines,
    stderr: Lines,
    extensions: Lines,
    tail: VecDeque<u8>,
    left: usize,
    dropped: usize,
    /// Lines of the platform that are still to be shown: before the next output, or at the
    /// end. Writing them keeps no caller waiting.
    unshown: Vec<String>,
}

impl FunctionLog {
    /// An empty log. `occasion` names the request in every line.
    pub fn new(environment: EnvironmentId, occasion: impl ToString) -> Self {
        Self {
            environment,
            occasion: occasion.to_string(),
            stdout: Lines::default(),
            stderr: Lines::default(),
            extensions: Lines::default(),
            tail: VecDeque::new(),
            left: MAX_LOGGED,
            dropped: 0,
            unshown: Vec::new(),
        }
    }

    /// The platform's first line of a request.
    pub fn begin(&mut self, invocation: &Invocation) {
        self.say(platform::start(invocation));
    }

    /// The platform's last lines of a request, which took so long.
    pub fn end(&mut self, invocation: &Invocation, duration_ns: u64, outcome: &Outcome) {
        for line in platform::report(invocation, duration_ns, outcome) {
            self.say(line);
        }
    }

    /// A line of the platform's own: it counts for no limit.
    fn say(&mut self, line: String) {
        self.keep(line.as_bytes());
        self.keep(b"\n");
        self.unshown.push(line);
    }

    fn show_platform(&mut self) {
        for line in self.unshown.drain(..) {
            show(self.environment, &self.occasion, "platform", &line);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let newest = &bytes[bytes.len().saturating_sub(LOG_TAIL)..];
        let excess = (self.tail.len() + newest.len()).saturating_sub(LOG_TAIL);
        self.tail.drain(..excess);
        self.tail.extend(newest);
    }

    /// Takes what the function wrote.
    pub fn push(&mut self, stream: LogStream, bytes: &[u8]) {
        self.show_platform();
        self.keep(bytes);
        let logged = &bytes[..bytes.len().min(self.left)];
        self.left -= logged.len();
        self.dropped += bytes.len() - logged.len();
        let (environment, occasion) = (self.environment, &self.occasion);
        match stream {
            LogStream::Stdout => {
                self.stdout
                    .push(logged, |line| show(environment, occasion, "stdout", line));
            }
            LogStream::Stderr => {
                self.stderr
                    .push(logged, |line| show(environment, occasion, "stderr", line));
            }
            LogStream::Extension => {
                self.extensions.push(logged, |line| {
                    show(environment, occasion, "extension", line)
                });
            }
        }
    }

    /// The last bytes so far.
    pub fn tail(&self) -> Vec<u8> {
        self.tail.iter().copied().collect()
    }

    /// Ends the log.
    pub fn finish(&mut self) {
        self.show_platform();
        let (environment, occasion) = (self.environment, &self.occasion);
        self.stdout
            .finish(|line| show(environment, occasion, "stdout", line));
        self.stderr
            .finish(|line| show(environment, occasion, "stderr", line));
        self.extensions
            .finish(|line| show(environment, occasion, "extension", line));
        if self.dropped > 0 {
            let dropped = self.dropped;
            tracing::warn!(
                target: "snapback::function",
                %environment,
                request = occasion,
                "{dropped} bytes of output were dropped"
            );
        }
    }
}

fn show(environment: EnvironmentId, occasion: &str, stream: &str, line: &str) {
    tracing::info!(
        target: "snapback::function",
        %environment,
        request = occasion,
        stream,
        "{line}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_newest_bytes() {
        let mut log = FunctionLog::new(EnvironmentId::from_number(1), "test");
        log.push(LogStream::Stdout, &[b'a'; LOG_TAIL]);
        log.push(LogStream::Stderr, b"end");
        let tail = log.tail();
        assert_eq!(tail.len(), LOG_TAIL);
        assert!(tail.ends_with(b"aend"));
    }

    #[test]
    fn a_flood_is_counted_and_not_kept() {
        let mut log = FunctionLog::new(EnvironmentId::from_number(1), "test");
        let chunk = vec![b'\n'; MAX_LOGGED];
        log.push(LogStream::Stdout, &chunk);
        log.push(LogStream::Stdout, &chunk);
        assert_eq!(
            (log.left, log.dropped, log.tail.len()),
            (0, MAX_LOGGED, LOG_TAIL)
        );
    }
}
