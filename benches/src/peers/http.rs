//! A VMM that is driven by HTTP on a Unix socket, and reaches its guest's vsock by
//! another one.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::process::{Process, remove};
use super::{Dial, PeerError, Start, Times, prepare};
use crate::client::{Client, ClientError};

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_micros(200);

/// Where a process of it has its sockets and its log.
#[derive(Debug, Clone)]
pub struct Places {
    /// Where it takes requests.
    pub api: PathBuf,
    /// Where it forwards connections to the guest's vsock.
    pub vsock: PathBuf,
    /// What it says.
    pub log: PathBuf,
}

impl Places {
    /// Those of `peer` in the directory `scratch`.
    #[must_use]
    pub fn of(peer: &'static str, scratch: &Path) -> Self {
        let at = |name: &str| scratch.join(format!("{peer}-{name}"));
        Self {
            api: at("api"),
            vsock: at("vsock"),
            log: at("log"),
        }
    }
}

/// A process that takes requests; it ends when this is dropped.
#[derive(Debug)]
pub struct Machine {
    peer: &'static str,
    /// Right before its process was started.
    begun: Instant,
    process: Process,
    dial: Dial,
    client: Client,
    /// Its own: a runtime that other threads drive would add their wake-ups to what is
    /// measured.
    runtime: Runtime,
    limit: Duration,
}

impl Machine {
    /// Starts `command`, which takes requests at `places` from then on, and waits until it
    /// does. It may take `limit` for this and for anything else.
    ///
    /// # Errors
    /// When it does not start, ends, or does not listen in time.
    pub fn start(
        peer: &'static str,
        command: &mut Command,
        places: &Places,
        limit: Duration,
    ) -> Result<Self, PeerError> {
        // It makes both sockets itself, and refuses places that are taken.
        remove(peer, &places.api)?;
        remove(peer, &places.vsock)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(prepare(peer, "make a runtime"))?;
        let begun = Instant::now();
        let mut process = Process::start(peer, command, &places.log)?;
        wait(peer, &places.api, &mut process, limit)?;
        Ok(Self {
            peer,
            begun,
            process,
            dial: Dial::Unix {
                path: places.vsock.clone(),
            },
            client: Client::new(&places.api),
            runtime,
            limit,
        })
    }

    /// Asks for something to be created or done.
    ///
    /// # Errors
    /// When it is refused or there is no answer in time.
    pub fn put(&self, path: &str, body: Option<&Value>) -> Result<(), PeerError> {
        self.ask(Method::PUT, path, body)
    }

    /// Asks for something to be changed.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn patch(&self, path: &str, body: &Value) -> Result<(), PeerError> {
        self.ask(Method::PATCH, path, Some(body))
    }

    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(), PeerError> {
        let command = format!("{method} {path}");
        let body = body.map(Value::to_string).unwrap_or_default();
        let exchange = self.client.send(method, path, body, self.limit);
        let failed = |error: ClientError| {
            prepare(self.peer, format!("have {command} answered"))(io::Error::other(error))
        };
        let answer = self.runtime.block_on(exchange).map_err(failed)?;
        if answer.status.is_success() {
            return Ok(());
        }
        Err(PeerError::Refused {
            peer: self.peer,
            command,
            answer: format!("{}: {}", answer.status, answer.shown()),
        })
    }

    /// Waits for the guest's answers, of PID 1 and of the function.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn answers(&mut self, begin: Instant) -> Result<Times, PeerError> {
        Times::of(begin, |line| {
            self.process.answers(&self.dial, line, self.limit)
        })
    }

    /// When the clock of a restore begins, if that is done now.
    #[must_use]
    pub fn begin(&self, start: Start) -> Instant {
        match start {
            Start::Waiting => Instant::now(),
            Start::None => self.begun,
        }
    }
}

/// Waits until `process` listens on `socket`.
fn wait(
    peer: &'static str,
    socket: &Path,
    process: &mut Process,
    limit: Duration,
) -> Result<(), PeerError> {
    let begin = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(_) => return Ok(()),
            Err(error) => {
                process.check()?;
                if begin.elapsed() >= limit {
                    let reaching = format!("reach {} within {limit:?}", socket.display());
                    return Err(prepare(peer, reaching)(error));
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}
