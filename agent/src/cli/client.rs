//! A small HTTP client over the agent's socket.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use anyhow::Context as _;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// A request's body: chunks as they come.
pub(super) struct Chunks(mpsc::Receiver<std::io::Result<Bytes>>);

impl Chunks {
    /// A body, and where its chunks go; an error there breaks the request off.
    pub fn channel() -> (mpsc::Sender<std::io::Result<Bytes>>, Self) {
        let (sender, receiver) = mpsc::channel(16);
        (sender, Self(receiver))
    }

    /// A body that is there already.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let (sender, body) = Self::channel();
        // There is room for one.
        let _ = sender.try_send(Ok(bytes.into()));
        body
    }
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0
            .poll_recv(cx)
            .map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

/// An answer that was read to its end.
pub(super) struct Answer {
    /// Status and headers.
    pub head: hyper::http::response::Parts,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// A header as text; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.head
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The answer when it is a success, else the error it tells.
    pub fn success(self) -> anyhow::Result<Self> {
        if self.head.status.is_success() {
            return Ok(self);
        }
        let told: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let message = ["message", "Message", "errorMessage"]
            .iter()
            .find_map(|key| told[key].as_str())
            .unwrap_or("the agent gave no reason");
        let kind = self.header("x-amzn-errortype");
        anyhow::bail!("{kind}: {message} (status {})", self.head.status)
    }
}

/// Sends one request and reads its answer.
pub(super) async fn send(socket: &Path, request: Request<Chunks>) -> anyhow::Result<Answer> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "there is no agent at {}: start one with `snapback agent`",
            socket.display()
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .context("the agent does not speak HTTP")?;
    let connection = tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .context("the agent did not answer")?;
    let answer = read(response).await?;
    connection.abort();
    Ok(answer)
}

async fn read(response: Response<Incoming>) -> anyhow::Result<Answer> {
    let (head, body) = response.into_parts();
    let body = http_body_util::Limited::new(body, MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!(error))
        .context("the agent's answer broke off")?
        .to_bytes();
    Ok(Answer { head, body })
}

/// A request without a body.
pub(super) fn empty(method: &str, path: &str) -> anyhow::Result<Request<Chunks>> {
    request(method, path, None, Chunks::whole(Bytes::new()))
}

/// A request with a body.
pub(super) fn request(
    method: &str,
    path: &str,
    content_type: Option<&str>,
    body: Chunks,
) -> anyhow::Result<Request<Chunks>> {
    let mut builder = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost");
    if let Some(content_type) = content_type {
        builder = builder.header("content-type", content_type);
    }
    Ok(builder.body(body)?)
}
