//! One command that runs somewhere, seen from here: its output as it comes, its end, and
//! the ways in which it can fail to end well. The box and the native runner share this.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long the output must be silent, after the command's end, to be complete. The command's
/// pipes are known to be empty by then; what may be under way is in a buffer between here
/// and there.
const QUIET: Duration = Duration::from_millis(50);

/// One of the command's output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// What is heard of a command that runs.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// It wrote this.
    Output(Stream, Vec<u8>),
    /// It is about to run.
    Started,
    /// It ended with this status, and all it wrote was sent before.
    Exited(u8),
    /// It could not run.
    Failed(String),
    /// Nothing more will be heard.
    Closed,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this status (128 + the signal's number if a signal ended it).
    Exited(u8),
    /// It ran longer than it may, and was killed.
    TimedOut(Duration),
    /// The user pressed Ctrl-C.
    Interrupted,
    /// The place it ran in failed; with what is known about it.
    Died(String),
}

impl Outcome {
    /// The status that a shell would report.
    pub fn code(&self) -> u8 {
        match self {
            Self::Exited(code) => *code,
            Self::TimedOut(_) => 124,
            Self::Died(_) => 125,
            Self::Interrupted => 130,
        }
    }

    /// What went wrong with the run itself, in words; nothing if the command simply ended.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Exited(_) => None,
            Self::TimedOut(limit) => Some(format!(
                "the command ran longer than {} s and was killed (--timeout sets the limit)",
                limit.as_secs()
            )),
            Self::Interrupted => Some("interrupted".to_owned()),
            Self::Died(why) => Some(why.clone()),
        }
    }
}

/// Receives what a command writes, as it writes it.
pub type OnOutput<'a> = &'a mut dyn FnMut(Stream, &[u8]) -> Result<()>;

/// Limits on a run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the beginning to the command's start.
    pub start: Duration,
    /// From the command's start to its end.
    pub run: Duration,
}

/// Passes output on until the command ends, one way or another. `ended_early` says why nothing
/// will ever be heard, if that is so.
pub fn follow(
    events: &Receiver<Event>,
    limits: Limits,
    on_output: OnOutput<'_>,
    mut ended_early: impl FnMut() -> Result<Option<String>>,
) -> Result<Outcome> {
    let interrupted = interrupt_flag()?;
    let begun = Instant::now();
    let mut started = None;
    loop {
        match events.recv_timeout(Duration::from_millis(100)) {
            Ok(Event::Output(stream, bytes)) => on_output(stream, &bytes)?,
            Ok(Event::Started) => started = Some(Instant::now()),
            Ok(Event::Exited(code)) => {
                while let Ok(event) = events.recv_timeout(QUIET) {
                    if let Event::Output(stream, bytes) = event {
                        on_output(stream, &bytes)?;
                    }
                }
                return Ok(Outcome::Exited(code));
            }
            Ok(Event::Failed(why)) => return Ok(Outcome::Died(why)),
            Ok(Event::Closed) | Err(RecvTimeoutError::Disconnected) => {
                return Ok(Outcome::Died("it went down under the command".to_owned()));
            }
            Err(RecvTimeoutError::Timeout) => {
                if started.is_none()
                    && let Some(why) = ended_early()?
                {
                    return Ok(Outcome::Died(why));
                }
            }
        }
        if interrupted.load(Ordering::Relaxed) {
            return Ok(Outcome::Interrupted);
        }
        match started {
            Some(started) if started.elapsed() > limits.run => {
                return Ok(Outcome::TimedOut(limits.run));
            }
            None if begun.elapsed() > limits.start => {
                return Ok(Outcome::Died(format!(
                    "the command did not start within {} s",
                    limits.start.as_secs()
                )));
            }
            _ => {}
        }
    }
}

/// Sends what arrives on one stream, until it ends.
pub fn send_output(mut from: impl Read, stream: Stream, events: &Sender<Event>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length) = from.read(&mut buffer) {
        if length == 0
            || events
                .send(Event::Output(stream, buffer[..length].to_vec()))
                .is_err()
        {
            return;
        }
    }
}

/// Copies a command's output to this process's.
pub fn pass_on(stream: Stream, bytes: &[u8]) -> Result<()> {
    match stream {
        Stream::Out => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        }
        Stream::Err => std::io::stderr().lock().write_all(bytes),
    }
    .context("cannot pass the command's output on")
}

/// A flag that Ctrl-C, or a request to terminate, sets.
fn interrupt_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, Arc::clone(&flag))
            .context("cannot install a handler for Ctrl-C")?;
    }
    Ok(flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn outcome(events: Vec<Event>, limit: Duration) -> (Outcome, Vec<u8>) {
        let (sender, receiver) = mpsc::channel();
        for event in events {
            sender.send(event).unwrap();
        }
        let mut written = Vec::new();
        let outcome = follow(
            &receiver,
            Limits {
                start: limit,
                run: limit,
            },
            &mut |_, bytes| {
                written.extend_from_slice(bytes);
                Ok(())
            },
            || Ok(None),
        )
        .unwrap();
        drop(sender);
        (outcome, written)
    }

    #[test]
    fn output_behind_the_status_is_not_lost() {
        let (outcome, written) = outcome(
            vec![
                Event::Started,
                Event::Output(Stream::Out, b"a".to_vec()),
                Event::Exited(3),
                Event::Output(Stream::Out, b"b".to_vec()),
            ],
            Duration::from_secs(5),
        );
        assert_eq!(outcome, Outcome::Exited(3));
        assert_eq!(written, b"ab");
    }

    #[test]
    fn silence_ends_at_the_limit() {
        let limit = Duration::from_millis(1);
        assert_eq!(
            outcome(vec![Event::Started], limit).0,
            Outcome::TimedOut(limit)
        );
        assert!(matches!(outcome(vec![], limit).0, Outcome::Died(_)));
    }

    #[test]
    fn a_place_that_goes_away_is_trouble() {
        let limit = Duration::from_secs(5);
        let (outcome, _) = outcome(vec![Event::Started, Event::Closed], limit);
        assert!(outcome.trouble().is_some());
        assert_eq!(outcome.code(), 125);
    }
}
