//! What the request decoder promises, however the bytes arrive.

use proptest::prelude::*;

use super::*;

/// Feeds `bytes` in pieces of `step` and returns the bodies, kept up to `cap`.
fn decode(bytes: &[u8], step: usize, cap: usize) -> Result<Vec<(String, Body)>, HttpError> {
    let mut decoder = RequestDecoder::default();
    let mut got = Vec::new();
    let mut target = String::new();
    for piece in bytes.chunks(step.max(1)) {
        decoder.room().extend_from_slice(piece);
        decoder.appended(piece.len());
        loop {
            match decoder.advance()? {
                Progress::NeedMore => break,
                Progress::Head(head) => {
                    target = head.target;
                    decoder.keep(cap);
                }
                Progress::Part(_) => unreachable!("nothing is streamed here"),
                Progress::Complete(body) => got.push((target.clone(), body)),
            }
        }
    }
    Ok(got)
}

fn kept(target: &str, body: &[u8]) -> (String, Body) {
    (target.to_owned(), Body::Kept(body.to_vec()))
}

const TWO: &[u8] = b"POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello\
    GET /b HTTP/1.1\r\n\r\n\
    POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\n\r\n\
    \r\nPOST /d HTTP/1.1\r\nContent-Length: 0\r\n\r\n";

#[test]
fn pipelined_requests_come_apart_wherever_the_bytes_are_cut() {
    let expected = vec![
        kept("/a", b"hello"),
        kept("/b", b""),
        kept("/c", b"abcde"),
        kept("/d", b""),
    ];
    for step in 1..=TWO.len() {
        assert_eq!(decode(TWO, step, 100).unwrap(), expected, "step {step}");
    }
}

#[test]
fn a_body_over_its_cap_is_read_past_and_the_next_request_is_found() {
    for step in [1, 7, 4096] {
        let got = decode(TWO, step, 4).unwrap();
        assert_eq!(got[0], ("/a".to_owned(), Body::TooLarge));
        assert_eq!(got[2], ("/c".to_owned(), Body::TooLarge));
        assert_eq!(got[3], kept("/d", b""));
        assert_eq!(decode(TWO, step, 5).unwrap()[0], kept("/a", b"hello"));
    }
}

#[test]
fn a_body_without_end_is_cut_off() {
    let mut decoder = RequestDecoder::default();
    let head = b"POST / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n";
    decoder.room().extend_from_slice(head);
    assert!(matches!(decoder.advance(), Ok(Progress::Head(_))));
    decoder.keep(10);
    let megabyte = vec![0; 1024 * 1024];
    for _ in 0..64 {
        decoder.room().extend_from_slice(&megabyte);
        assert!(matches!(decoder.advance(), Ok(Progress::NeedMore)));
        assert_eq!(decoder.buffered(), 0);
    }
    decoder.room().push(0);
    assert_eq!(decoder.advance().unwrap_err(), HttpError::BodyTooLarge);
}

#[test]
fn a_head_without_end_is_cut_off() {
    let mut bytes = b"GET / HTTP/1.1\r\nA: ".to_vec();
    bytes.resize(MAX_HEAD + 1, b'x');
    assert_eq!(
        decode(&bytes, 65_536, 0).unwrap_err(),
        HttpError::HeadTooLarge
    );
}

#[test]
fn chunks_that_lie_about_their_length_are_refused() {
    for chunks in [
        "5\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcXX",
        "-1\r\n",
        "zz\r\n",
        "fffffffffffffffff\r\n",
    ] {
        let text = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}\n\n\n\n");
        assert!(decode(text.as_bytes(), 4096, 100).is_err(), "{chunks:?}");
    }
    let endless = format!(
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;{}",
        "x".repeat(5000)
    );
    assert_eq!(
        decode(endless.as_bytes(), 4096, 9).unwrap_err(),
        HttpError::HeadTooLarge
    );
    let trailers = "a: b\r\n".repeat(MAX_TRAILERS + 1);
    let many = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{trailers}\r\n");
    assert_eq!(
        decode(many.as_bytes(), 4096, 9).unwrap_err(),
        HttpError::HeadTooLarge
    );
}

#[test]
fn a_long_body_is_read_to_where_it_stays() {
    let body = vec![42; 100_000];
    let mut bytes = b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n".to_vec();
    bytes.extend_from_slice(&body);
    bytes.extend_from_slice(b"GET /next HTTP/1.1\r\n\r\n");
    for step in [1000, 33_333, 65_536, 200_000] {
        assert_eq!(
            decode(&bytes, step, 100_000).unwrap(),
            vec![kept("/", &body), kept("/next", b"")]
        );
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_never_pile_up(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        step in 1_usize..64,
    ) {
        let _ = decode(&bytes, step, 16);
    }

    #[test]
    fn mutated_requests_never_panic(
        at in 0..TWO.len(), byte in any::<u8>(), cut in 0..TWO.len(), step in 1_usize..40,
    ) {
        let mut bytes = TWO.to_vec();
        bytes[at] = byte;
        bytes.truncate(cut);
        let _ = decode(&bytes, step, 16);
    }

    #[test]
    fn any_body_survives_any_chunking(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..8),
        step in 1_usize..100,
    ) {
        let mut bytes = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in &pieces {
            bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        let got = decode(&bytes, step, 1000).unwrap();
        prop_assert_eq!(got, vec![kept("/", &pieces.concat())]);
    }
}

/// Streams the one body in `bytes`; returns its pieces and how it ended.
fn stream(bytes: &[u8], step: usize) -> Result<(Vec<Vec<u8>>, Option<Body>), HttpError> {
    let mut decoder = RequestDecoder::default();
    let (mut parts, mut end) = (Vec::new(), None);
    for piece in bytes.chunks(step.max(1)) {
        decoder.room().extend_from_slice(piece);
        decoder.appended(piece.len());
        loop {
            match decoder.advance()? {
                Progress::NeedMore => break,
                Progress::Head(_) => decoder.stream(),
                Progress::Part(part) => parts.push(part),
                Progress::Complete(body) => end = Some(body),
            }
        }
    }
    Ok((parts, end))
}

#[test]
fn a_streamed_body_is_given_out_as_it_comes_with_the_error_in_its_trailers() {
    let bytes = b"POST /r HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
        5\r\nhello\r\n6\r\n world\r\n0\r\nX: y\r\n\
        lambda-runtime-function-error-type: Boom\r\n\
        Lambda-Runtime-Function-Error-Body: e30=\r\n\r\n";
    for step in 1..=bytes.len() {
        let (parts, end) = stream(bytes, step).unwrap();
        assert_eq!(parts.concat(), b"hello world", "step {step}");
        assert!(parts.len() > 1 && parts.iter().all(|part| !part.is_empty()));
        let trailers = Trailers {
            error_type: Some("Boom".to_owned()),
            error_body: Some("e30=".to_owned()),
        };
        assert_eq!(end, Some(Body::Streamed(trailers)), "step {step}");
    }
}

#[test]
fn a_streamed_body_has_no_length_that_is_too_long_and_no_piece_that_is() {
    let mut bytes = b"POST /r HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n".to_vec();
    bytes.extend(std::iter::repeat_n(7, 1_000_000));
    let (parts, end) = stream(&bytes, 300_000).unwrap();
    assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 1_000_000);
    assert!(parts.iter().all(|part| part.len() <= MAX_STREAM_CHUNK));
    assert_eq!(end, Some(Body::Streamed(Trailers::default())));
}

#[test]
fn a_trailer_without_end_is_refused() {
    let mut bytes = b"POST /r HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ".to_vec();
    bytes.extend(std::iter::repeat_n(b'y', MAX_TRAILER + 1));
    assert_eq!(stream(&bytes, 4096).unwrap_err(), HttpError::HeadTooLarge);
}
