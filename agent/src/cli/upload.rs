//! Sending code to the agent.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;
use hyper::body::Bytes;
use tokio::sync::mpsc;

use super::client::{self, Chunks};
use crate::api::CodeInfo;

/// How much of a file is sent at a time.
const CHUNK: usize = 64 * 1024;

/// Sends a package while it is read: a folder as a tar archive, a file as it is.
pub(super) async fn upload(socket: &Path, package: &Path) -> anyhow::Result<CodeInfo> {
    let package = package.to_owned();
    anyhow::ensure!(
        package.exists(),
        "there is nothing at {}: code is a folder, a zip, or the tar archive of a container image",
        package.display()
    );
    let (sender, body) = Chunks::channel();
    let name = package.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let sent = if package.is_dir() {
            archive(&package, sender.clone())
        } else {
            file(&package, sender.clone())
        };
        if let Err(error) = &sent {
            // The agent must not take half a package for a whole one.
            let broken = io::Error::new(error.kind(), error.to_string());
            let _ = sender.blocking_send(Err(broken));
        }
        sent
    });
    let request = client::request("POST", "/v1/code", Some("application/octet-stream"), body)?;
    let answer = client::send(socket, request).await;
    // An agent that refuses stops reading, and that breaks the sending: its reason
    // is the better one.
    let answer = match (answer, reading.await?) {
        (Ok(answer), _) => answer.success(),
        (Err(_), Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(error).with_context(|| format!("{} cannot be read", name.display()));
        }
        (Err(error), _) => return Err(error),
    };
    let answer = answer.with_context(|| format!("{} is refused", name.display()))?;
    Ok(serde_json::from_slice(&answer.body)?)
}

fn file(path: &Path, sender: mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(CHUNK, ToChunks(sender));
    io::copy(&mut std::fs::File::open(path)?, &mut out)?;
    out.flush()
}

fn archive(folder: &Path, sender: mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let out = io::BufWriter::with_capacity(CHUNK, ToChunks(sender));
    let mut builder = tar::Builder::new(out);
    builder.follow_symlinks(false);
    builder.append_dir_all(".", folder)?;
    builder.into_inner()?.flush()
}

/// Writes into a request's body.
struct ToChunks(mpsc::Sender<io::Result<Bytes>>);

impl Write for ToChunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = Bytes::copy_from_slice(bytes);
        self.0
            .blocking_send(Ok(chunk))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
