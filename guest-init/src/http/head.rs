//! A request's first lines: method, target, and the headers that matter here.

use super::{HttpError, MAX_HEADERS};

/// A request's method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `GET`.
    Get,
    /// `POST`.
    Post,
    /// `PUT`.
    Put,
    /// Any other.
    Other,
}

/// How a body's end is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes.
    Length(u64),
    /// After a chunk of length zero and the trailers.
    Chunked,
}

/// A request without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// Path and query, as sent.
    pub target: String,
    /// How the body ends.
    pub framing: Framing,
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Lambda-Runtime-Function-Error-Type`, or an extension's counterpart.
    pub error_type: Option<String>,
    /// `Lambda-Runtime-Function-Response-Mode: streaming`.
    pub streams: bool,
    /// `Lambda-Extension-Name`.
    pub extension_name: Option<String>,
    /// `Lambda-Extension-Identifier`.
    pub extension_id: Option<String>,
}

impl Head {
    /// Parses a complete head (up to and including its empty line).
    ///
    /// # Errors
    /// When it is not one, or its body's length cannot be told.
    pub fn parse(bytes: &[u8]) -> Result<Self, HttpError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
            Ok(_) => return Err(HttpError::Malformed),
            Err(httparse::Error::TooManyHeaders) => return Err(HttpError::HeadTooLarge),
            Err(_) => return Err(HttpError::Malformed),
        }
        let (Some(method), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Err(HttpError::Malformed);
        };
        let mut head = Self {
            method: match method {
                "GET" => Method::Get,
                "POST" => Method::Post,
                "PUT" => Method::Put,
                _ => Method::Other,
            },
            target: target.to_owned(),
            framing: Framing::Length(0),
            keep_alive: version == 1,
            expects_continue: false,
            content_type: None,
            error_type: None,
            streams: false,
            extension_name: None,
            extension_id: None,
        };
        let mut length = None;
        let mut chunked = false;
        for header in request.headers.iter() {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                let value = parse_length(header.value)?;
                if length.is_some_and(|other| other != value) {
                    return Err(HttpError::AmbiguousLength);
                }
                length = Some(value);
            } else if is("transfer-encoding") {
                if chunked || !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(HttpError::TransferCoding);
                }
                chunked = true;
            } else if is("connection") {
                if has_token(header.value, b"close") {
                    head.keep_alive = false;
                } else if has_token(header.value, b"keep-alive") {
                    head.keep_alive = true;
                }
            } else if is("expect") {
                head.expects_continue = has_token(header.value, b"100-continue");
            } else if is("content-type") {
                head.content_type = text(header.value);
            } else if is("lambda-runtime-function-error-type")
                || is("lambda-extension-function-error-type")
            {
                head.error_type = text(header.value);
            } else if is("lambda-runtime-function-response-mode") {
                head.streams = header.value.eq_ignore_ascii_case(b"streaming");
            } else if is("lambda-extension-name") {
                head.extension_name = text(header.value);
            } else if is("lambda-extension-identifier") {
                head.extension_id = text(header.value);
            }
        }
        head.framing = match (length, chunked) {
            (Some(_), true) => return Err(HttpError::AmbiguousLength),
            (None, true) => Framing::Chunked,
            (length, false) => Framing::Length(length.unwrap_or(0)),
        };
        Ok(head)
    }
}

/// Digits only: `+5` and an empty value are numbers to `str::parse`'s relatives
/// elsewhere, and a request that two programs measure differently is an attack.
fn parse_length(value: &[u8]) -> Result<u64, HttpError> {
    let value = value.trim_ascii();
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(HttpError::AmbiguousLength);
    }
    let digits = str::from_utf8(value).map_err(|_| HttpError::AmbiguousLength)?;
    digits.parse().map_err(|_| HttpError::AmbiguousLength)
}

fn has_token(value: &[u8], token: &[u8]) -> bool {
    let mut tokens = value.split(|&b| b == b',');
    tokens.any(|t| t.trim_ascii().eq_ignore_ascii_case(token))
}

fn text(value: &[u8]) -> Option<String> {
    str::from_utf8(value).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Head, HttpError> {
        Head::parse(text.as_bytes())
    }

    #[test]
    fn what_the_python_runtime_sends_is_understood() {
        let head = parse(
            "POST /2018-06-01/runtime/invocation/abc/error HTTP/1.1\r\nHost: 127.0.0.1:9001\r\n\
             Accept: */*\r\ncontent-type: application/json\r\n\
             lambda-runtime-function-error-type: ValueError\r\ncontent-length: 12\r\n\r\n",
        )
        .unwrap();
        assert_eq!(head.method, Method::Post);
        assert_eq!(head.target, "/2018-06-01/runtime/invocation/abc/error");
        assert_eq!(head.framing, Framing::Length(12));
        assert!(head.keep_alive && !head.expects_continue);
        assert_eq!(head.content_type.as_deref(), Some("application/json"));
        assert_eq!(head.error_type.as_deref(), Some("ValueError"));
    }

    #[test]
    fn a_length_that_two_readers_could_differ_on_is_refused() {
        for headers in [
            "Content-Length: 1\r\nContent-Length: 2",
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Content-Length: +1",
            "Content-Length: ",
            "Content-Length: 1, 1",
            "Content-Length: 99999999999999999999",
        ] {
            let text = format!("POST / HTTP/1.1\r\n{headers}\r\n\r\n");
            assert_eq!(parse(&text), Err(HttpError::AmbiguousLength), "{headers}");
        }
        for coding in [
            "gzip",
            "gzip, chunked",
            "chunked\r\nTransfer-Encoding: chunked",
        ] {
            let text = format!("POST / HTTP/1.1\r\nTransfer-Encoding: {coding}\r\n\r\n");
            assert_eq!(parse(&text), Err(HttpError::TransferCoding), "{coding}");
        }
    }

    #[test]
    fn the_connection_header_decides_what_the_version_does_not() {
        let keeps = |text: &str| parse(text).unwrap().keep_alive;
        assert!(keeps("GET / HTTP/1.1\r\n\r\n"));
        assert!(!keeps("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n"));
        assert!(!keeps("GET / HTTP/1.0\r\n\r\n"));
        assert!(keeps("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
    }

    #[test]
    fn more_headers_than_allowed_are_too_large() {
        let text = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "a: b\r\n".repeat(MAX_HEADERS + 1)
        );
        assert_eq!(parse(&text), Err(HttpError::HeadTooLarge));
    }
}
