//! A line to a peer's guest and one back, over its vsock.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vsock::VsockStream;

/// Where `peer-init` listens.
const PORT: u32 = 5000;
/// How long the first attempt may take: many times what a guest needs. A machine that was
/// just restored resets what was under way, and its host does not always hear of it; the next
/// attempt gets through, and must not come late.
const FIRST_ATTEMPT: Duration = Duration::from_millis(5);
/// Each later attempt may take so many times as long as the one before.
const MORE_PATIENCE: u32 = 4;
/// How long any attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two attempts that failed at once.
const PAUSE: Duration = Duration::from_micros(200);

/// How the guest is reached.
#[derive(Debug, Clone)]
pub enum Dial {
    /// Through the host kernel's vsock.
    Vsock {
        /// The guest's context id.
        cid: u32,
    },
    /// Through a Unix socket of the VMM, which takes `CONNECT <port>` first.
    Unix {
        /// The socket.
        path: PathBuf,
    },
}

impl Dial {
    /// Sends `line` (with its end) and returns the guest's line. Tries again until
    /// `limit` is over.
    ///
    /// # Errors
    /// Those of the last attempt.
    pub fn ask(&self, line: &str, limit: Duration) -> io::Result<String> {
        let (begin, mut patience) = (Instant::now(), FIRST_ATTEMPT);
        loop {
            match self.attempt(line, patience) {
                Ok(answer) => return Ok(answer),
                Err(error) if begin.elapsed() >= limit => return Err(error),
                // It heard nothing, which is not a refusal.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    patience = (patience * MORE_PATIENCE).min(ATTEMPT);
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn attempt(&self, line: &str, patience: Duration) -> io::Result<String> {
        match self {
            Self::Vsock { cid } => {
                let stream = VsockStream::connect_with_cid_port(*cid, PORT)?;
                stream.set_read_timeout(Some(patience))?;
                exchange(&stream, &stream, line)
            }
            Self::Unix { path } => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(patience))?;
                let greeting = exchange(&stream, &stream, &format!("CONNECT {PORT}\n"))?;
                if !greeting.starts_with("OK ") {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                exchange(&stream, &stream, line)
            }
        }
    }
}

/// One line each way. Nothing follows the guest's line, so reading ahead loses nothing.
fn exchange(reader: impl Read, mut writer: impl Write, line: &str) -> io::Result<String> {
    writer.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(reader).read_line(&mut answer)?;
    if answer.ends_with('\n') {
        Ok(answer)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_guest_behind_a_unix_socket_is_asked_until_it_answers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        let listener = UnixListener::bind(&path).unwrap();
        let guest = std::thread::spawn(move || {
            // The first caller finds a machine that is not there yet.
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            assert_eq!(lines.next().unwrap().unwrap(), "CONNECT 5000");
            stream.write_all(b"OK 1024\n").unwrap();
            assert_eq!(lines.next().unwrap().unwrap(), "ping");
            stream.write_all(b"pong\n").unwrap();
        });
        let dial = Dial::Unix { path };
        assert_eq!(dial.ask("ping\n", ATTEMPT).unwrap(), "pong\n");
        guest.join().unwrap();
    }

    #[test]
    fn a_guest_that_is_not_there_is_given_up() {
        let dial = Dial::Unix {
            path: "/nonexistent".into(),
        };
        assert!(dial.ask("ping\n", Duration::from_millis(5)).is_err());
    }
}
