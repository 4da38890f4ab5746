//! A guest-init as an ordinary process's thread, an agent at its channel, and
//! clients of its Runtime API. Only the machine's clock and generator are replaced:
//! those belong to the computer that runs the tests.

#![allow(dead_code, missing_docs, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

use std::convert::Infallible;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use snapback_guest_init::channel::Channel;
use snapback_guest_init::guest::{Guest, GuestError, Parts};
use snapback_guest_init::process::Layout;
use snapback_guest_init::resume::Machine;
use snapback_proto::frame::{FrameError, read_frame, write_frame};
use snapback_proto::guest::{
    ENTROPY_LEN, Gather, GuestMessage, HostMessage, Identity, Init, Invoke, LogFormat, LogStream,
    ReadyPoint, Resume, VsockAccess,
};
use snapback_proto::ids::RequestId;
use tempfile::TempDir;

/// Nothing takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was asked of the machine, in order.
pub type Renewals = Arc<Mutex<Vec<String>>>;

struct Recorder(Renewals);

impl Machine for Recorder {
    fn set_identity(&mut self, identity: &Identity) -> io::Result<()> {
        let name = &identity.hostname;
        self.0.lock().unwrap().push(format!("name {name}"));
        Ok(())
    }

    fn bound_tmp(&mut self, mib: u32) -> io::Result<()> {
        self.0.lock().unwrap().push(format!("tmp {mib}"));
        Ok(())
    }

    fn ran_out_of_memory(&mut self) -> bool {
        false
    }

    /// As if every other page could be moved.
    fn gather(&mut self, pages: &Gather) -> io::Result<u32> {
        let Gather { written, read } = pages;
        let told = format!("gather {written:?} {read:?}");
        self.0.lock().unwrap().push(told);
        Ok(u32::try_from((written.len() + read.len()) / 2).unwrap())
    }

    fn reseed(&mut self, fresh: &[u8; ENTROPY_LEN]) -> io::Result<()> {
        self.0.lock().unwrap().push(format!("reseed {}", fresh[0]));
        Ok(())
    }

    fn set_wall_clock(&mut self, ns: u64) -> io::Result<()> {
        self.0.lock().unwrap().push(format!("clock {ns}"));
        Ok(())
    }
}

/// A guest-init and the agent's end of its channel.
pub struct Environment {
    pub host: UnixStream,
    pub api: SocketAddr,
    pub renewals: Renewals,
    guest: JoinHandle<Result<Infallible, GuestError>>,
    folder: TempDir,
    /// Output that came while something else was waited for.
    pub output: Vec<(LogStream, Vec<u8>)>,
}

impl Environment {
    /// Starts a guest-init whose bootstrap is this file; `None`: there is none.
    pub fn new(bootstrap: Option<&str>) -> Self {
        Self::with_extensions(bootstrap, &[])
    }

    /// As [`new`](Self::new), with external extensions: name and script.
    pub fn with_extensions(bootstrap: Option<&str>, extensions: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::create_dir(folder.path().join("extensions")).unwrap();
        for (name, script) in extensions {
            let path = folder.path().join("extensions").join(name);
            write_program(&path, &format!("#!/bin/bash\n{script}\n"));
        }
        let path = folder.path().join("bootstrap");
        if let Some(content) = bootstrap {
            write_program(&path, content);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = listener.local_addr().unwrap();
        let (ours, host) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        let renewals = Renewals::default();
        let recorder = Recorder(Arc::clone(&renewals));
        let layout = Layout {
            task_root: folder.path().to_owned(),
            bootstraps: vec![PathBuf::from("/nonexistent/bootstrap"), path],
            extensions: folder.path().join("extensions"),
            user: None,
            container: None,
        };
        let guest = std::thread::spawn(move || {
            let mut guest = Guest::new(Parts {
                channel: Channel::new(ours.into()),
                listener,
                layout,
                machine: Box::new(recorder),
                orphans: None,
            })?;
            guest.run()
        });
        let mut environment = Self {
            host,
            api,
            renewals,
            guest,
            folder,
            output: Vec::new(),
        };
        assert!(matches!(
            environment.message().0,
            GuestMessage::Hello { .. }
        ));
        environment
    }

    /// Starts a guest-init whose bootstrap is a bash script, and lets it be initialised.
    pub fn started(script: &str) -> Self {
        let mut environment = Self::new(Some(&format!("#!/bin/bash\n{script}\n")));
        environment.init();
        environment
    }

    /// A function whose runtime is the test itself: the process only waits.
    pub fn driven() -> Self {
        Self::started("exec sleep 30")
    }

    /// As [`driven`](Self::driven), parked in `next` on the returned client.
    pub fn parked() -> (Self, Client) {
        let mut environment = Self::driven();
        let mut client = environment.client();
        client.get("invocation/next");
        environment.expect_ready(ReadyPoint::Next);
        (environment, client)
    }

    /// Where the external extensions are.
    pub fn extensions(&self) -> PathBuf {
        self.folder.path().join("extensions")
    }

    pub fn client(&self) -> Client {
        Client::new(self.api)
    }

    pub fn send(&mut self, message: &HostMessage, payload: &[u8]) {
        write_frame(&mut self.host, message, payload).unwrap();
    }

    pub fn init(&mut self) {
        let init = Init {
            function: "report".to_owned(),
            version: "$LATEST".to_owned(),
            handler: "app.handler".to_owned(),
            memory_mib: 256,
            region: "local".to_owned(),
            execution_env: None,
            log_format: LogFormat::Text,
            log_level: None,
            vsock: VsockAccess::Denied,
            environment: vec![("STAGE".to_owned(), "test".to_owned())],
            wall_clock_ns: 1,
            ephemeral_storage_mib: 64,
        };
        self.send(&HostMessage::Init(init), b"");
    }

    pub fn resume(&mut self, generation: u64) {
        self.send_resume(generation);
        assert_eq!(self.message().0, GuestMessage::Resumed { generation });
    }

    pub fn send_resume(&mut self, generation: u64) {
        let resume = Resume {
            generation,
            entropy: [7; ENTROPY_LEN],
            wall_clock_ns: 1000 + generation,
            identity: Identity {
                hostname: format!("host-{generation}"),
                ..Identity::default()
            },
        };
        self.send(&HostMessage::Resume(resume), b"");
    }

    pub fn invoke(&mut self, number: u8, event: &[u8]) -> RequestId {
        let request = RequestId::from_random([number; 16]);
        let invoke = Invoke {
            request: request.clone(),
            deadline_ms: 1_700_000_000_123,
            function_arn: "arn:aws:lambda:local:0:function:report".to_owned(),
            trace_id: Some("Root=1-2-3".to_owned()),
            client_context: None,
            tenant_id: Some("acme".to_owned()),
        };
        self.send(&HostMessage::Invoke(invoke), event);
        request
    }

    /// The next message that is not output; that is put aside.
    pub fn message(&mut self) -> (GuestMessage, Vec<u8>) {
        loop {
            match read_frame(&mut self.host).unwrap() {
                (GuestMessage::Log { stream }, chunk) => self.output.push((stream, chunk)),
                other => return other,
            }
        }
    }

    pub fn expect_ready(&mut self, at: ReadyPoint) {
        assert_eq!(self.message().0, GuestMessage::Ready { at });
    }

    /// Waits for the next output, which must be what comes next.
    pub fn next_output(&mut self) {
        match read_frame(&mut self.host).unwrap() {
            (GuestMessage::Log { stream }, chunk) => self.output.push((stream, chunk)),
            other => panic!("not output: {other:?}"),
        }
    }

    /// All output so far of one stream.
    pub fn output_of(&self, wanted: LogStream) -> String {
        let chunks = self.output.iter().filter(|(stream, _)| *stream == wanted);
        let bytes: Vec<u8> = chunks
            .flat_map(|(_, chunk)| chunk.iter().copied())
            .collect();
        String::from_utf8(bytes).unwrap()
    }

    /// Fails if the guest says anything for a while.
    pub fn expect_silence(&mut self) {
        let patience = Some(Duration::from_millis(150));
        self.host.set_read_timeout(patience).unwrap();
        let error = match read_frame::<GuestMessage>(&mut self.host) {
            Err(FrameError::Io(error)) => error,
            other => panic!("not silent: {other:?}"),
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
        self.host.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// Why the guest stopped; closes the channel if it has not.
    pub fn stopped(self) -> GuestError {
        self.host.shutdown(std::net::Shutdown::Write).unwrap();
        let Err(error) = self.guest.join().unwrap();
        error
    }
}

/// Writes an executable file by way of another process: a thread that forks while
/// this one has the file open for writing would make it unexecutable for a moment.
fn write_program(path: &std::path::Path, content: &str) {
    let mut writer = Command::new("/bin/sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writer
        .stdin
        .take()
        .unwrap()
        .write_all(content.as_bytes())
        .unwrap();
    assert!(writer.wait().unwrap().success());
}

/// Shell functions with which a bootstrap speaks the real API over `/dev/tcp`.
pub const SHELL_CLIENT: &str = r#"
base=/2018-06-01/runtime
exec 3<>"/dev/tcp/${AWS_LAMBDA_RUNTIME_API%:*}/${AWS_LAMBDA_RUNTIME_API#*:}"
answer() { # reads one response: status, id, body
  local line length=0; read -r _ status _ <&3
  while IFS= read -r line <&3 && [ -n "${line%$'\r'}" ]; do line=${line%$'\r'}
    case "$line" in Content-Length:*) length=${line#*: };;
      Lambda-Runtime-Aws-Request-Id:*) id=${line#*: };; esac
  done
  LC_ALL=C IFS= read -r -d '' -N "$length" body <&3
}
next() { printf 'GET %s/invocation/next HTTP/1.1\r\n\r\n' "$base" >&3; answer; }
post() { printf 'POST %s/%s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s' "$base" "$1" "${#2}" "$2" >&3; answer; }
"#;

/// A response of the API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_str())
    }

    pub fn error_type(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        json["errorType"].as_str().unwrap().to_owned()
    }
}

/// A client that keeps its connection.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn new(api: SocketAddr) -> Self {
        let stream = TcpStream::connect(api).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// Sends a call without waiting for its response.
    pub fn get(&mut self, call: &str) {
        self.send(format!("GET /2018-06-01/runtime/{call} HTTP/1.1\r\n\r\n").as_bytes());
    }

    pub fn post(&mut self, call: &str, headers: &str, body: &[u8]) -> Answer {
        let length = body.len();
        let head = format!(
            "POST /2018-06-01/runtime/{call} HTTP/1.1\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        self.send(head.as_bytes());
        self.send(body);
        self.answer()
    }

    /// Sends a request of any of the APIs without waiting for its response.
    pub fn ask(&mut self, request: &str, headers: &str, body: &str) {
        let length = body.len();
        self.send(
            format!("{request} HTTP/1.1\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
                .as_bytes(),
        );
    }

    /// As [`ask`](Self::ask), with the response.
    pub fn call(&mut self, request: &str, headers: &str, body: &str) -> Answer {
        self.ask(request, headers, body);
        self.answer()
    }

    pub fn respond(&mut self, request: &RequestId, body: &[u8]) -> Answer {
        self.post(&format!("invocation/{request}/response"), "", body)
    }

    pub fn answer(&mut self) -> Answer {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(
                self.stream.read_line(&mut line).unwrap() > 0,
                "the connection ended"
            );
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines[1..]
            .iter()
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
        };
        let length = answer
            .header("Content-Length")
            .map_or(0, |value| value.parse().unwrap());
        answer.body = vec![0; length];
        self.stream.read_exact(&mut answer.body).unwrap();
        answer
    }

    /// Whether the server ends the connection.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0) | Err(_))
    }
}
