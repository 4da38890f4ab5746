//! The Unix socket: one agent's at a time, never half there. And a TCP address, where one is
//! configured.

use std::fs::{self, Permissions};
use std::future::IntoFuture as _;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::router;
use crate::lock::{Lock, LockError};
use crate::node::Node;

/// Who may connect: owner and group.
const MODE: u32 = 0o660;

/// How long open connections have, after the last request was answered.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another agent has it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file operation failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The TCP address cannot be had.
    #[error("listening on {address} (`api.tcp`)")]
    Tcp {
        /// Which address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The socket's name, taken: nobody else serves it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
    tcp: Option<TcpListener>,
    _lock: Lock,
}

/// A server that answers.
#[derive(Debug)]
pub struct Running {
    path: PathBuf,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<io::Result<()>>>,
    _lock: Lock,
}

impl Server {
    /// Takes the socket's place, and the TCP address if one is given; what an agent that was
    /// killed left at the socket's place is replaced.
    ///
    /// # Errors
    /// When another agent has it, or it cannot be made.
    pub async fn bind(path: &Path, tcp: Option<SocketAddr>) -> Result<Self, ServeError> {
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| ServeError::Io {
                operation,
                path,
                source,
            }
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed("creating", parent))?;
        }
        let lock = Lock::take(&with_suffix(path, ".lock"), path)?;
        let tcp = match tcp {
            None => None,
            Some(address) => {
                let failed = |source| ServeError::Tcp { address, source };
                Some(TcpListener::bind(address).await.map_err(failed)?)
            }
        };
        // Under another name until it has its mode: nobody connects too early.
        let draft = with_suffix(path, ".new");
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing", &draft)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&draft).map_err(failed("binding", &draft))?;
        fs::set_permissions(&draft, Permissions::from_mode(MODE))
            .map_err(failed("setting the mode of", &draft))?;
        fs::rename(&draft, path).map_err(failed("renaming to", path))?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            tcp,
            _lock: lock,
        })
    }

    /// Gives the socket's place up, when there is nothing to serve on it.
    pub fn abandon(self) {
        let _ = fs::remove_file(&self.path);
    }

    /// Serves a node, in a task of its own.
    #[must_use]
    pub fn start(self, node: Arc<Node>) -> Running {
        let stop = CancellationToken::new();
        let stopped = || stop.clone().cancelled_owned();
        let serving = axum::serve(self.listener, router(Arc::clone(&node)))
            .with_graceful_shutdown(stopped())
            .into_future();
        let mut tasks = vec![tokio::spawn(serving)];
        tracing::info!(socket = %self.path.display(), "serving");
        if let Some(listener) = self.tcp {
            tracing::info!(address = ?listener.local_addr().ok(), "serving");
            let listener = listener.tap_io(|stream| {
                // Only slower otherwise.
                let _ = stream.set_nodelay(true);
            });
            let serving = axum::serve(listener, router(node))
                .with_graceful_shutdown(stopped())
                .into_future();
            tasks.push(tokio::spawn(serving));
        }
        Running {
            path: self.path,
            stop,
            tasks,
            _lock: self._lock,
        }
    }
}

impl Running {
    /// Removes the socket, so that nobody new connects.
    pub fn unlink(&self) {
        // Somebody may have removed it already.
        let _ = fs::remove_file(&self.path);
    }

    /// Waits for the end of the open connections, a little.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let deadline = tokio::time::Instant::now() + CLOSE_LIMIT;
        for task in &mut self.tasks {
            if tokio::time::timeout_at(deadline, &mut *task).await.is_err() {
                task.abort();
            }
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
