//! Responses into bytes.

use std::sync::Arc;

use super::HttpError;
use crate::output::OutputQueue;

/// An HTTP response.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    content_type: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Arc<Vec<u8>>,
    closes: bool,
}

impl Reply {
    /// A response with a JSON body.
    #[must_use]
    pub fn json(status: u16, body: Vec<u8>) -> Self {
        Self::shared(status, Arc::new(body))
    }

    /// A response with a JSON body that is kept elsewhere too.
    #[must_use]
    pub fn shared(status: u16, body: Arc<Vec<u8>>) -> Self {
        Self {
            status,
            content_type: "application/json",
            headers: Vec::new(),
            body,
            closes: false,
        }
    }

    /// The response to something that is not a request; the connection ends.
    #[must_use]
    pub fn protocol_error(error: HttpError) -> Self {
        Self {
            status: error.status(),
            content_type: "text/plain",
            headers: Vec::new(),
            body: Arc::new(format!("{error}\n").into_bytes()),
            closes: true,
        }
    }

    /// Adds a header. What cannot stand in one becomes a space: a value may come
    /// from a caller, and a line break in it would begin another header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        let clean = |c: char| if c.is_ascii_control() { ' ' } else { c };
        let value = value.chars().map(clean).collect();
        self.headers.push((name, value));
        self
    }

    /// Lets the connection end after this response.
    #[must_use]
    pub fn closing(mut self, closes: bool) -> Self {
        self.closes |= closes;
        self
    }

    /// Whether the connection ends after this response.
    #[must_use]
    pub fn closes(&self) -> bool {
        self.closes
    }

    /// The status code.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Appends the response's bytes.
    pub fn write_to(&self, output: &mut OutputQueue) {
        use std::fmt::Write as _;

        let mut head = String::with_capacity(256);
        // Writing to a String cannot fail.
        let _ = write!(
            head,
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n",
            self.status,
            reason(self.status),
            self.content_type,
            self.body.len()
        );
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if self.closes {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        output.push(head.into_bytes());
        output.push_shared(Arc::clone(&self.body));
    }
}

/// What a client that announced a body waits for.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Payload Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn bytes(reply: &Reply) -> String {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut output = OutputQueue::default();
        reply.write_to(&mut output);
        output.send(&ours).unwrap();
        drop(ours);
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_reply_is_an_http_response() {
        let reply = Reply::json(202, b"{}".to_vec()).header("X-Y", "z");
        assert_eq!(
            bytes(&reply),
            "HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\
             X-Y: z\r\n\r\n{}"
        );
    }

    #[test]
    fn a_value_cannot_begin_another_header() {
        let reply = Reply::json(200, Vec::new()).header("A", "x\r\nInjected: yes\0\u{7f}ü");
        assert!(bytes(&reply).contains("\r\nA: x  Injected: yes  ü\r\n"));
    }
}
