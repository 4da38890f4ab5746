//! A caller of the agent: HTTP/1.1 over its Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Largest answer, in bytes: Lambda's 6 MiB, and room for the agent's own lists.
const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// How much of an unexpected answer an error shows, in characters.
const SHOWN: usize = 400;

/// Calls one agent. Every request has its own connection.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// An answer with its whole body.
#[derive(Debug, Clone)]
pub struct Answer {
    /// For the errors of what follows.
    request: String,
    /// HTTP's status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// A request was not answered, or not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("cannot connect to {}", socket.display())]
    Connect {
        /// The agent's socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The request cannot be expressed.
    #[error("{request} is no valid request")]
    Request {
        /// Method and path.
        request: String,
        /// Why.
        #[source]
        source: hyper::http::Error,
    },
    /// The connection broke.
    #[error("{request} failed on the way")]
    Http {
        /// Method and path.
        request: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// The body broke off or is too long.
    #[error("the answer to {request} did not arrive whole")]
    Body {
        /// Method and path.
        request: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer came in time.
    #[error("{request} was not answered within {limit:?}")]
    Timeout {
        /// Method and path.
        request: String,
        /// The bound.
        limit: Duration,
    },
    /// The agent refused.
    #[error("{request} was answered with {status}: {body}")]
    Refused {
        /// Method and path.
        request: String,
        /// HTTP's status.
        status: StatusCode,
        /// The begin of the body.
        body: String,
    },
    /// The answer is not the JSON that it should be.
    #[error("the answer to {request} has an unexpected shape: {body}")]
    Shape {
        /// Method and path.
        request: String,
        /// The begin of the body.
        body: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Client {
    /// A client of the agent that listens on `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        let socket = socket.to_owned();
        Self { socket }
    }

    /// Sends a request and takes the whole answer, whatever its status.
    ///
    /// # Errors
    /// When there is no whole answer within `limit`.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
        limit: Duration,
    ) -> Result<Answer, ClientError> {
        let request = format!("{method} {path}");
        let exchange = self.exchange(&request, method, path, body.into());
        match timeout(limit, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Timeout { request, limit }),
        }
    }

    async fn exchange(
        &self,
        name: &str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let http = |source| ClientError::Http {
            request: name.to_owned(),
            source,
        };
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| ClientError::Connect {
                    socket: self.socket.clone(),
                    source,
                })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "localhost")
            .header("Content-Type", "application/json")
            .body(Full::new(body))
            .map_err(|source| ClientError::Request {
                request: name.to_owned(),
                source,
            })?;
        let exchange = async {
            let (head, body) = sender
                .send_request(request)
                .await
                .map_err(http)?
                .into_parts();
            let body = Limited::new(body, MAX_ANSWER);
            let body = body.collect().await.map_err(|source| ClientError::Body {
                request: name.to_owned(),
                source,
            })?;
            Ok(Answer {
                request: name.to_owned(),
                status: head.status,
                headers: head.headers,
                body: body.to_bytes(),
            })
        };
        // The connection has to be driven for as long as the exchange lasts, no longer.
        tokio::pin!(exchange);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            ended = connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(http(error)),
            },
        }
    }
}

impl Answer {
    /// The body as JSON, if the status is one of success.
    ///
    /// # Errors
    /// When the agent refused or the body has another shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        let (request, body) = (self.request.clone(), self.shown());
        if !self.status.is_success() {
            return Err(ClientError::Refused {
                request,
                status: self.status,
                body,
            });
        }
        serde_json::from_slice(&self.body).map_err(|source| ClientError::Shape {
            request,
            body,
            source,
        })
    }

    /// A header's value, if it is there and text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The begin of the body.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.body)
            .chars()
            .take(SHOWN)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Answers one connection with these bytes and returns what was asked.
    fn served(answer: &'static [u8], limit: Duration) -> (Result<Answer, ClientError>, String) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 4096];
            let length = stream.read(&mut asked).unwrap();
            stream.write_all(answer).unwrap();
            if answer.is_empty() {
                // The caller gives up.
                let _ = stream.read(&mut asked);
            }
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let client = Client::new(&socket);
        let answer = runtime.block_on(client.send(Method::POST, "/v1/x", "{}", limit));
        drop(runtime);
        (answer, server.join().unwrap())
    }

    #[test]
    fn a_request_is_answered() {
        let (answer, asked) = served(
            b"HTTP/1.1 200 OK\r\nX-Id: 7\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
            LIMIT,
        );
        let answer = answer.unwrap();
        assert_eq!(answer.header("x-id"), Some("7"));
        let value: serde_json::Value = answer.json().unwrap();
        assert_eq!(value["a"], 1);
        assert!(asked.starts_with("POST /v1/x HTTP/1.1\r\n"), "{asked}");
        assert!(asked.ends_with("\r\n\r\n{}"), "{asked}");
    }

    #[test]
    fn a_refusal_is_told_from_nonsense() {
        let (answer, _) = served(b"HTTP/1.1 404 x\r\nContent-Length: 2\r\n\r\nno", LIMIT);
        let refused = answer.unwrap().json::<serde_json::Value>();
        assert!(matches!(refused, Err(ClientError::Refused { .. })));
        let (answer, _) = served(b"HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\nno", LIMIT);
        let nonsense = answer.unwrap().json::<serde_json::Value>();
        assert!(matches!(nonsense, Err(ClientError::Shape { .. })));
    }

    #[test]
    fn half_an_answer_is_none() {
        let (answer, _) = served(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{", LIMIT);
        assert!(answer.is_err());
    }

    #[test]
    fn silence_has_an_end() {
        let (answer, _) = served(b"", Duration::from_millis(50));
        assert!(matches!(answer, Err(ClientError::Timeout { .. })));
    }
}
