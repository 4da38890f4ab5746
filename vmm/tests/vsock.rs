//! Streams between a real guest and its host: many, both ways, and what becomes of
//! them when the guest is snapshotted, restored and reset.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use harness::guest::Boot;
use harness::{Cache, Shape, TestMachine, boot_and_snapshot, restored, restored_from};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use snapback_proto::hub::{HubCommand, HubRequest, receive_request, send_command};

/// Bytes that go each way at once.
const BULK: usize = 6 << 20;
/// Connections of each side that come and go, one after the other.
const CYCLES: usize = 1050;

const ECHO: u32 = 7;
const REFUSED: u32 = 9;
const BULK_PORT: u32 = 10;
const ANSWER: u32 = 11;
const ENDS_FIRST: u32 = 12;
const CALL_ME: u32 = 13;
const SILENT: u32 = 14;
const LATE: u32 = 15;
/// What the guest sends to a host that only reads once a snapshot is being taken:
/// more than the host's socket holds, and less than fits with what the VMM holds.
const LATE_BYTES: usize = 320 << 10;
/// Where the guest listens.
const GUEST: u32 = 5000;

/// What both sides send: every byte differs from its neighbours, and from the same
/// place in another stream.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at * 7 + at / 253 + seed) % 256).unwrap())
        .collect()
}

/// The agent's side of a hub: takes what the guest asks for and serves it by port.
#[derive(Clone)]
struct Agent {
    hub: Arc<OwnedFd>,
    /// What the host got to see.
    seen: Arc<Mutex<Vec<String>>>,
    /// Ends that are kept open and never served.
    kept: Arc<Mutex<Vec<UnixStream>>>,
    /// When the late reader may begin.
    late: Arc<Barrier>,
}

impl Agent {
    /// An agent that serves until its hub is closed, and the VMM's end.
    fn start() -> (Self, OwnedFd) {
        let kind = SocketType::SEQPACKET;
        let (hub, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let agent = Self {
            hub: Arc::new(hub),
            seen: Arc::default(),
            kept: Arc::default(),
            late: Arc::new(Barrier::new(2)),
        };
        let serving = agent.clone();
        thread::spawn(move || serving.serve());
        (agent, theirs)
    }

    fn serve(&self) {
        let mut answers = None;
        while let Ok(request) = receive_request(&*self.hub) {
            match request {
                HubRequest::Connect {
                    host_port: SILENT, ..
                } => {}
                HubRequest::Connect {
                    id,
                    host_port: REFUSED,
                    ..
                } => {
                    self.says(HubCommand::Refuse { id }, None);
                }
                HubRequest::Connect { id, host_port, .. } => {
                    let (ours, theirs) = UnixStream::pair().unwrap();
                    let (agent, (told, hears)) = (self.clone(), channel());
                    if host_port == CALL_ME {
                        answers = Some(told);
                    }
                    thread::spawn(move || agent.stream(host_port, ours, &hears));
                    self.says(HubCommand::Accept { id }, Some(theirs));
                }
                answer => {
                    let _ = answers.as_ref().map(|answers| answers.send(answer));
                }
            }
        }
    }

    fn says(&self, command: HubCommand, stream: Option<UnixStream>) {
        let stream = stream.as_ref().map(AsFd::as_fd);
        // A hub that is gone shows in the guest.
        let _ = send_command(&*self.hub, &command, stream);
    }

    /// What the host got to see, once that is `count` things.
    fn sees(&self, count: usize) -> Vec<String> {
        for _ in 0..600 {
            if self.seen.lock().unwrap().len() >= count {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        self.seen.lock().unwrap().clone()
    }

    fn saw(&self, what: impl Into<String>) {
        self.seen.lock().unwrap().push(what.into());
    }

    /// Serves one stream of the guest.
    fn stream(&self, port: u32, mut stream: UnixStream, answers: &Receiver<HubRequest>) {
        stream
            .set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        match port {
            ECHO => {
                let mut bytes = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..read]).is_err() {
                        return;
                    }
                }
            }
            BULK_PORT => {
                let mut reader = stream.try_clone().unwrap();
                let reading = thread::spawn(move || {
                    let mut got = Vec::new();
                    reader.read_to_end(&mut got).map(|_| got)
                });
                stream.write_all(&pattern(BULK, 2)).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let got = reading.join().unwrap().unwrap();
                self.saw(format!("bulk {}", got == pattern(BULK, 1)));
            }
            ANSWER => {
                let mut question = String::new();
                stream.read_to_string(&mut question).unwrap();
                stream
                    .write_all(format!("answer to {question}").as_bytes())
                    .unwrap();
            }
            ENDS_FIRST => {
                stream.write_all(b"all").unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut rest = String::new();
                stream.read_to_string(&mut rest).unwrap();
                self.saw(format!("after the end: {rest}"));
            }
            CALL_ME => self.call(stream, answers),
            LATE => {
                self.late.wait();
                // Its guest is being stopped now; the bytes are not to be lost.
                thread::sleep(Duration::from_millis(300));
                let mut got = vec![0; LATE_BYTES];
                let read = stream.read_exact(&mut got);
                let all = read.is_ok() && got == pattern(LATE_BYTES, 0);
                self.saw(format!("late {all}"));
            }
            _ => self.kept.lock().unwrap().push(stream),
        }
    }

    /// Calls the guest as often as it says: it listens, and sends every stream back
    /// what it gets. The last port has no listener.
    fn call(&self, mut control: UnixStream, answers: &Receiver<HubRequest>) {
        let mut count = [0; 4];
        control.read_exact(&mut count).unwrap();
        for id in 0..u64::from(u32::from_le_bytes(count)) {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let connect = HubCommand::Connect {
                id,
                guest_port: GUEST,
            };
            self.says(connect, Some(theirs));
            let answer = answers.recv_timeout(Duration::from_secs(60)).unwrap();
            assert_eq!(answer, HubRequest::Connected { id });
            ours.write_all(&id.to_le_bytes()).unwrap();
            let mut back = [0; 8];
            ours.read_exact(&mut back).unwrap();
            assert_eq!(u64::from_le_bytes(back), id);
        }
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let id = u64::MAX;
        let connect = HubCommand::Connect {
            id,
            guest_port: GUEST + 1,
        };
        self.says(connect, Some(theirs));
        let answer = answers.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(answer, HubRequest::Refused { id });
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        self.saw("calls");
        control.write_all(b"done").unwrap();
    }
}

/// What the guest does in one request, and how it says what came of it.
const PRELUDE: &str = r#"
import socket, threading, time
def connect(port):
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.settimeout(50)
    s.connect((2, port))
    return s
def until_end(s):
    got = bytearray()
    while piece := s.recv(65536):
        got += piece
    return bytes(got)
def failure(call):
    try:
        return call()
    except OSError as error:
        return error.errno
def pattern(length, seed):
    return bytes((at * 7 + at // 253 + seed) % 256 for at in range(length))
def sockets():
    return int(open("/proc/net/sockstat").readline().split()[2])
"#;

/// Runs a program in the guest, as one request; `result` is what it leaves.
fn run(machine: &mut TestMachine, program: &str) -> String {
    let program = format!("{PRELUDE}{program}");
    let program = serde_json::to_string(&program).unwrap();
    machine.look(&format!(
        "(lambda names: [exec({program}, names), names['result']][1])({{}})"
    ))
}

fn descriptors(machine: &TestMachine) -> usize {
    let path = format!("/proc/{}/fd", machine.vmm.child.id());
    std::fs::read_dir(path).unwrap().count()
}

const STREAMS: &str = r"
result = {}
s = connect(7)
s.sendall(b'hello')
result['echo'] = s.recv(100)
s.close()
result['refused'] = failure(lambda: connect(9))
s = connect(11)
s.sendall(b'question')
s.shutdown(socket.SHUT_WR)
result['guest ends first'] = until_end(s)
s = connect(12)
result['host ends first'] = until_end(s)
s.sendall(b'still here')
s.close()
";

#[test]
fn streams_of_every_kind_leave_nothing_behind() {
    let mut machine = restored(Cache::Warm);
    let (agent, hub) = Agent::start();
    machine.hub.set(Some(hub));
    let before = descriptors(&machine);
    let told = run(&mut machine, STREAMS);
    let expected = concat!(
        "{'echo': b'hello', 'refused': 104, 'guest ends first': b'answer to question', ",
        "'host ends first': b'all'}"
    );
    assert_eq!(told, expected);
    // The hub, and the channel until the VMM has seen that this test closed it.
    assert!(descriptors(&machine) <= before + 2);
    machine.reset();
    assert_eq!(descriptors(&machine), before);
    assert_eq!(machine.differences(), Vec::<String>::new());
    assert_eq!(agent.sees(1), ["after the end: still here"]);

    // The next life has no hub, and the one after it has another.
    let refused = run(&mut machine, "result = failure(lambda: connect(7))");
    assert_eq!(refused, "104");
    machine.reset();
    let (_agent, hub) = Agent::start();
    machine.hub.set(Some(hub));
    assert_eq!(run(&mut machine, STREAMS), expected);
    machine.reset();
    assert_eq!(machine.differences(), Vec::<String>::new());
}

#[test]
fn megabytes_go_both_ways_at_once_and_arrive_as_they_were_sent() {
    let mut machine = restored(Cache::Warm);
    let (agent, hub) = Agent::start();
    machine.hub.set(Some(hub));
    // Two streams at once, so that they share the queues.
    let program = format!(
        r"
out, expected = pattern(253 * 256, 1), pattern(253 * 256, 2)
def stretch(piece, seed):
    # The pattern repeats itself after 253 * 256 bytes.
    return (piece * ({BULK} // len(piece) + 1))[:{BULK}]
out, expected = stretch(out, 1), stretch(expected, 2)
oks = []
def one():
    s = connect({BULK_PORT})
    sender = threading.Thread(target=lambda: (s.sendall(out), s.shutdown(socket.SHUT_WR)))
    sender.start()
    got = until_end(s)
    sender.join()
    oks.append(got == expected)
threads = [threading.Thread(target=one) for _ in range(2)]
[t.start() for t in threads]
[t.join() for t in threads]
result = oks
"
    );
    assert_eq!(run(&mut machine, &program), "[True, True]");
    machine.reset();
    assert_eq!(machine.differences(), Vec::<String>::new());
    assert_eq!(agent.sees(2), ["bulk true", "bulk true"]);
}

#[test]
fn thousands_of_connections_come_and_go() {
    let mut machine = restored(Cache::Warm);
    let (agent, hub) = Agent::start();
    machine.hub.set(Some(hub));
    let pid = machine.vmm.child.id();
    let most = Arc::new(Mutex::new(0));
    let watching = Arc::clone(&most);
    // The most at any time while the guest works.
    let watch = thread::spawn(move || {
        while Arc::strong_count(&watching) > 1 {
            let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
            let count = open.map_or(0, Iterator::count);
            let mut most = watching.lock().unwrap();
            *most = count.max(*most);
            drop(most);
            thread::sleep(Duration::from_millis(20));
        }
    });
    let before = descriptors(&machine);
    let program = format!(
        r"
def alive(nth):
    # Each line is a sign of life, of which the test wants one now and then.
    if nth % 50 == 0:
        print(nth, flush=True)
def cycle(nth):
    alive(nth)
    s = connect({ECHO})
    s.sendall(nth.to_bytes(4, 'little'))
    ok = s.recv(4) == nth.to_bytes(4, 'little')
    s.close()
    return ok
def settled():
    # A socket lives on for a moment after its close.
    for _ in range(100):
        if sockets() <= before:
            return True
        time.sleep(0.1)
    return sockets()
cycle(0)
before = sockets()
result = [sum(cycle(nth) for nth in range({CYCLES})), settled()]
l = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
l.bind((socket.VMADDR_CID_ANY, {GUEST}))
l.listen(16)
l.settimeout(50)
control = connect({CALL_ME})
control.sendall(({CYCLES}).to_bytes(4, 'little'))
peers = set()
for nth in range({CYCLES}):
    alive(nth)
    s, peer = l.accept()
    peers.add(peer)
    s.sendall(s.recv(8))
    s.close()
done = control.recv(4)
control.close()
l.close()
result += [done, len(peers), settled()]
"
    );
    let told = run(&mut machine, &program);
    assert_eq!(told, format!("[{CYCLES}, True, b'done', {CYCLES}, True]"));
    assert_eq!(agent.sees(1), ["calls"]);
    assert!(
        descriptors(&machine) <= before + 2,
        "the channel and the hub"
    );
    let peak = *most.lock().unwrap();
    drop(most);
    watch.join().unwrap();
    assert!(peak <= before + 24, "{peak} at most, {before} before");
    machine.reset();
    assert_eq!(machine.differences(), Vec::<String>::new());
    assert_eq!(machine.request("{}"), r#"{"calls": 1, "trace": 1}"#);
}

/// What is open when the snapshot is taken: a stream that was used, one that has
/// something unread, one that the host opened, one whose host has not read yet, one
/// that nobody answered.
const AT_INIT: &str = r"
import ctypes, socket
def connect(port):
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.settimeout(50)
    s.connect((2, port))
    return s
used = connect(7)
used.sendall(b'before')
assert used.recv(6) == b'before'
unread = connect(7)
unread.sendall(b'unread')
while not unread.recv(6, socket.MSG_PEEK) == b'unread':
    pass
l = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
l.bind((socket.VMADDR_CID_ANY, 5000))
l.listen(16)
control = connect(13)
control.sendall((1).to_bytes(4, 'little'))
called, _ = l.accept()
called.sendall(called.recv(8))
assert control.recv(4) == b'done'
late = connect(15)
late.sendall(bytes((at * 7 + at // 253) % 256 for at in range(320 << 10)))
asked = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
# SO_VM_SOCKETS_CONNECT_TIMEOUT: not while the snapshot is being taken.
timeout = (60).to_bytes(16, 'little')
assert ctypes.CDLL(None).setsockopt(asked.fileno(), socket.AF_VSOCK, 6, timeout, 16) == 0
asked.setblocking(False)
asked.connect_ex((2, 14))
";

/// What has become of them: the socket's error, what is received (what was unread
/// comes first), the error of sending.
const AFTER: &str = r"
import app
def state(s):
    s.settimeout(10)
    got = failure(lambda: s.recv(10))
    if got == b'unread':
        got = [got, failure(lambda: s.recv(10))]
    return [s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), got, failure(lambda: s.send(b'?'))]
result = [state(s) for s in (app.used, app.unread, app.called, app.late, app.asked)]
";

/// Linux shows the reset of an established stream as its end, and as a broken pipe
/// to those who send (32, `EPIPE`); that of one not yet established as what it is
/// (104, `ECONNRESET`), after which it is not connected (107, `ENOTCONN`).
const WHAT_IS_LEFT: &str =
    "[0, b'', 32], [0, [b'unread', b''], 32], [0, b'', 32], [0, b'', 32], [104, 107, 107]";

#[test]
fn connections_of_the_snapshot_are_reset_in_every_life() {
    let (agent, hub) = Agent::start();
    let late = Arc::clone(&agent.late);
    let snapshot = boot_and_snapshot(Boot {
        shape: Shape::SMALL,
        hub: Some(hub),
        at_init: AT_INIT,
        before_snapshot: Box::new(move || {
            late.wait();
        }),
    });
    assert_eq!(agent.sees(2), ["calls", "late true"]);
    let mut machine = restored_from(&snapshot, Cache::Warm);
    assert_eq!(machine.differences(), Vec::<String>::new());
    for with_hub in [true, false, true] {
        let (_agent, hub) = Agent::start();
        machine.hub.set(with_hub.then_some(hub));
        let echo = "s = connect(7); s.sendall(b'new'); result += [s.recv(3)]";
        let program = format!("{AFTER}\n{}", if with_hub { echo } else { "" });
        let told = run(&mut machine, &program);
        let new = if with_hub { ", b'new'" } else { "" };
        assert_eq!(told, format!("[{WHAT_IS_LEFT}{new}]"));
        machine.reset();
        assert_eq!(machine.differences(), Vec::<String>::new());
    }
}
