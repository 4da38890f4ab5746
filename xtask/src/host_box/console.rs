//! The host's ends of the box's serial ports: the job's stdout and stderr, and the line
//! protocol in which the box's init says how the job is doing.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::{Context, Result};

use crate::execution::{Event, Stream, send_output};

/// The sockets that QEMU connects the ports to.
pub struct Ports {
    dir: PathBuf,
    listeners: Vec<UnixListener>,
}

/// The ports' names, in the order of their numbers in the box (from 1).
pub const PORTS: [&str; 3] = ["out", "err", "status"];

impl Ports {
    /// Listens on a socket per port in `dir`.
    pub fn listen(dir: &Path) -> Result<Self> {
        let mut listeners = Vec::new();
        for name in PORTS {
            let path = socket_path(dir, name);
            listeners.push(
                UnixListener::bind(&path)
                    .with_context(|| format!("cannot listen on {}", path.display()))?,
            );
        }
        Ok(Self {
            dir: dir.to_owned(),
            listeners,
        })
    }

    /// The socket of the port `name`.
    pub fn socket(&self, name: &str) -> PathBuf {
        socket_path(&self.dir, name)
    }

    /// Starts a thread per port that sends what arrives to `events`. The threads end when
    /// the machine closes its side.
    pub fn read_into(self, events: &Sender<Event>) {
        for (name, listener) in PORTS.into_iter().zip(self.listeners) {
            let events = events.clone();
            thread::spawn(move || {
                let Ok((socket, _)) = listener.accept() else {
                    return;
                };
                match name {
                    "out" => send_output(socket, Stream::Out, &events),
                    "err" => send_output(socket, Stream::Err, &events),
                    _ => statuses(socket, &events),
                }
            });
        }
    }
}

fn socket_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.sock"))
}

fn statuses(from: impl Read, events: &Sender<Event>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        if let Some(event) = parse_status(&line)
            && events.send(event).is_err()
        {
            return;
        }
    }
    let _ = events.send(Event::Closed);
}

fn parse_status(line: &str) -> Option<Event> {
    let line = line.trim_end();
    if line == "started" {
        return Some(Event::Started);
    }
    if let Some(code) = line.strip_prefix("exit ") {
        return code.parse().ok().map(Event::Exited);
    }
    line.strip_prefix("failed ")
        .map(|why| Event::Failed(why.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_understood() {
        assert_eq!(parse_status("started"), Some(Event::Started));
        assert_eq!(parse_status("exit 7\r"), Some(Event::Exited(7)));
        assert_eq!(
            parse_status("failed cannot mount x"),
            Some(Event::Failed("cannot mount x".into()))
        );
        assert_eq!(parse_status("exit many"), None);
        assert_eq!(parse_status("noise"), None);
    }
}
