//! HTTP/1.1 over a Unix socket, as any client would speak it: one request a connection.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::LIMIT;

/// An answer that was read to its end.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// A header, by its name in lower case; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map_or("", |(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The request's id, as Lambda's API names it.
    pub fn request_id(&self) -> &str {
        self.header("x-amzn-requestid")
    }

    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let broken = |what: &str| io::Error::new(io::ErrorKind::UnexpectedEof, what.to_owned());
        let end = bytes
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .ok_or_else(|| broken("the head is not whole"))?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| broken("the head is no text"))?;
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok())
            .ok_or_else(|| broken("the status line"))?;
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let response = Self {
            status,
            headers,
            body: bytes[end + 4..].to_vec(),
        };
        // Everything that the agent says has a length; 204 has no body.
        match response.header("content-length").parse::<usize>() {
            Ok(length) if length != response.body.len() => Err(broken("the body is not whole")),
            Err(_) if status != 204 => Err(broken("the body has no length")),
            _ => Ok(response),
        }
    }
}

/// Sends one request and reads its answer; an error when the connection breaks before.
pub fn request(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let length = body.len().to_string();
    let mut all = vec![("content-length", length.as_str())];
    all.extend(headers);
    exchange(socket, method, path, &all, body)
}

/// As [`request`], without telling the body's length ahead.
pub fn chunked(socket: &Path, method: &str, path: &str, body: &[u8]) -> io::Result<Response> {
    let mut framed = Vec::with_capacity(body.len() + body.len() / 1000);
    for chunk in body.chunks(60_000) {
        write!(framed, "{:x}\r\n", chunk.len())?;
        framed.extend_from_slice(chunk);
        framed.extend_from_slice(b"\r\n");
    }
    framed.extend_from_slice(b"0\r\n\r\n");
    exchange(
        socket,
        method,
        path,
        &[("transfer-encoding", "chunked")],
        &framed,
    )
}

fn exchange(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Response::parse(&answer)
}
