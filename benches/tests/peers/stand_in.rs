//! What stands for a VMM: a script that writes down its arguments and stays, a server on
//! the socket that they name, and a guest that answers behind the vsock's.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use snapback_bench::peers::{Guest, PeerError};

/// For anything that does its part.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A request: method, path, and the body, if there was one.
pub type Asked = (String, String, Option<Value>);

/// What is answered to the request whose path this is, instead of 204: a status and a
/// body; nothing at all without a status.
pub type Exception = (&'static str, Option<(u16, &'static str)>);

/// A directory with the script, the guest's files and the sockets.
pub struct StandIn {
    folder: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl StandIn {
    /// One whose script is `body`, after it has written its arguments to a file.
    pub fn new(version: &str, body: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        let record = folder.path().join("started");
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo '{version}'; exit 0; fi\n\
             echo $$ \"$@\" >>{}\n{body}\n",
            record.display()
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            folder,
            asked: Arc::default(),
        }
    }

    pub fn program(&self) -> PathBuf {
        self.at("program")
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn guest(&self) -> Guest {
        Guest {
            kernel: self.at("vmlinux"),
            initramfs: self.at("init.cpio"),
            root: self.at("root.erofs"),
            code: self.at("code.erofs"),
            memory_mib: 128,
            scratch: self.folder.path().to_owned(),
        }
    }

    /// The starts of its process: process id and arguments.
    pub fn starts(&self) -> Vec<(u32, String)> {
        let text = fs::read_to_string(self.at("started")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let (pid, words) = line.split_once(' ').unwrap();
                (pid.parse().unwrap(), words.to_owned())
            })
            .collect()
    }

    /// Checks that no process of it runs any more.
    pub fn check_that_all_ended(&self) {
        for (pid, _) in self.starts() {
            assert!(
                !Path::new(&format!("/proc/{pid}")).exists(),
                "{pid} runs on"
            );
        }
    }

    /// What was asked since the last time.
    pub fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// Serves as many processes, one after the other, while `drive` runs. The guest answers
    /// through `vsock`, but only once somebody was asked for one of `starting`.
    pub fn serve<T>(
        &self,
        api: &str,
        vsock: &str,
        starting: &'static [&'static str],
        exceptions: &'static [Exception],
        drive: impl FnOnce() -> T,
    ) -> T {
        let over = Arc::new(Mutex::new(false));
        let server = Server {
            record: self.at("started"),
            api: self.at(api),
            vsock: self.at(vsock),
            starting,
            exceptions,
            asked: Arc::clone(&self.asked),
            over: Arc::clone(&over),
        };
        let thread = std::thread::spawn(move || server.run());
        let result = drive();
        *over.lock().unwrap() = true;
        thread.join().unwrap();
        result
    }
}

#[derive(Clone)]
struct Server {
    record: PathBuf,
    api: PathBuf,
    vsock: PathBuf,
    starting: &'static [&'static str],
    exceptions: &'static [Exception],
    asked: Arc<Mutex<Vec<Asked>>>,
    over: Arc<Mutex<bool>>,
}

impl Server {
    fn over(&self) -> bool {
        *self.over.lock().unwrap()
    }

    /// Waits for each start of the process, and listens in its place.
    fn run(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut served = 0;
        while !self.over() {
            let starts = fs::read_to_string(&self.record).unwrap_or_default();
            if starts.matches('\n').count() > served {
                served += 1;
                runtime.block_on(self.listen(served));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Serves until the next process was started, or all is over.
    async fn listen(&self, served: usize) {
        let listener = tokio::net::UnixListener::bind(&self.api).unwrap();
        loop {
            let next = tokio::time::timeout(Duration::from_millis(5), listener.accept()).await;
            let starts = fs::read_to_string(&self.record).unwrap();
            if self.over() || starts.matches('\n').count() > served {
                return;
            }
            let Ok(Ok((stream, _))) = next else { continue };
            let server = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| server.clone().answer(request));
                // A caller that only looks whether somebody listens sends nothing.
                let _ = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }

    async fn answer(self, request: Request<Incoming>) -> hyper::Result<Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let path = head.uri.path().to_owned();
        let body = match body.is_empty() {
            true => None,
            false => {
                assert_eq!(head.headers["content-type"], "application/json", "{path}");
                Some(serde_json::from_slice(&body).unwrap())
            }
        };
        let asked = (head.method.to_string(), path.clone(), body);
        self.asked.lock().unwrap().push(asked);
        let exception = self.exceptions.iter().find(|(of, _)| *of == path);
        let (status, text) = match exception {
            None => (204, ""),
            Some((_, Some(answer))) => *answer,
            Some((_, None)) => std::future::pending().await,
        };
        if status == 204 && self.starting.contains(&path.as_str()) {
            let listener = UnixListener::bind(&self.vsock).unwrap();
            std::thread::spawn(move || answer_lines(&listener));
        }
        let body = Full::new(Bytes::from_static(text.as_bytes()));
        Ok(Response::builder().status(status).body(body).unwrap())
    }
}

/// A guest: two lines, each on a connection of its own that begins with its port.
fn answer_lines(listener: &UnixListener) {
    for expected in ["ping\n", "{}\n"] {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, "CONNECT 5000\n");
        stream.write_all(b"OK 1073741824\n").unwrap();
        line.clear();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, expected);
        stream.write_all(b"an answer\n").unwrap();
    }
}

/// A request without a body.
pub fn bare(method: &str, path: &str) -> Asked {
    (method.to_owned(), path.to_owned(), None)
}

/// A request with a body.
pub fn with(method: &str, path: &str, body: Value) -> Asked {
    (method.to_owned(), path.to_owned(), Some(body))
}

/// An error and its causes, as the report shows them.
pub fn chain<T>(result: Result<T, PeerError>) -> String {
    match result {
        Ok(_) => panic!("it worked"),
        Err(error) => snapback_proto::words::chain(&error),
    }
}

/// Checks that `drive` gives up well before the patience of a test is over.
pub fn soon<T>(drive: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = drive();
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    result
}
