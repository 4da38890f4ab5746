//! Runs a job on this host, with its output, end and limits seen as those of a job in the box.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::execution::{Event, Limits, OnOutput, Outcome, Stream, follow, send_output};
use crate::job::Job;
use crate::process::describe;

/// Runs `job`; calls `on_output` with what it writes, as it writes it.
pub fn run(job: &Job, timeout: Duration, on_output: OnOutput<'_>) -> Result<Outcome> {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .args(&job.command)
        .current_dir(&job.directory)
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{}`", describe(&command)))?;
    let group = Group(Pid::from_child(&child));
    let (sender, events) = mpsc::channel();
    // The receiver is at hand, so this cannot fail.
    let _ = sender.send(Event::Started);
    let mut copiers = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let sender = sender.clone();
        copiers.push(thread::spawn(move || {
            send_output(stdout, Stream::Out, &sender);
        }));
    }
    if let Some(stderr) = child.stderr.take() {
        let sender = sender.clone();
        copiers.push(thread::spawn(move || {
            send_output(stderr, Stream::Err, &sender);
        }));
    }
    thread::spawn(move || wait(child, &copiers, &sender));
    let limits = Limits {
        start: timeout,
        run: timeout,
    };
    let outcome = follow(&events, limits, on_output, || Ok(None));
    drop(group);
    outcome
}

/// Waits for the child, then for its output to end: but at most a second, since a process
/// that it left behind may hold its pipes open.
fn wait(mut child: Child, copiers: &[thread::JoinHandle<()>], events: &mpsc::Sender<Event>) {
    let event = match child.wait() {
        Ok(status) => {
            for _ in 0..100 {
                if copiers.iter().all(thread::JoinHandle::is_finished) {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
            Event::Exited(shell_status(status))
        }
        Err(error) => Event::Failed(format!("cannot wait for the command: {error}")),
    };
    // Nobody listens any more if the run was given up.
    let _ = events.send(event);
}

/// The status that a shell would report.
fn shell_status(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
}

/// The process group of a job, killed when dropped: nothing that it started outlives it.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // Fails if all of it has ended, which is as good.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: Duration) -> (Outcome, String, String) {
        let job = Job::new(["sh", "-c", script].map(str::to_owned).to_vec()).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let outcome = run(&job, timeout, &mut |stream, bytes| {
            match stream {
                Stream::Out => out.extend_from_slice(bytes),
                Stream::Err => err.extend_from_slice(bytes),
            }
            Ok(())
        })
        .unwrap();
        (
            outcome,
            String::from_utf8(out).unwrap(),
            String::from_utf8(err).unwrap(),
        )
    }

    #[test]
    fn output_and_status_come_back() {
        let (outcome, out, err) = sh("echo o; echo e >&2; exit 7", Duration::from_secs(20));
        assert_eq!(outcome, Outcome::Exited(7));
        assert_eq!((out.as_str(), err.as_str()), ("o\n", "e\n"));
    }

    #[test]
    fn a_signal_is_reported_as_a_shell_does() {
        let (outcome, _, _) = sh("kill -9 $$", Duration::from_secs(20));
        assert_eq!(outcome, Outcome::Exited(137));
    }

    #[test]
    fn a_job_that_runs_too_long_is_killed() {
        let limit = Duration::from_millis(200);
        assert_eq!(sh("sleep 60", limit).0, Outcome::TimedOut(limit));
    }
}
