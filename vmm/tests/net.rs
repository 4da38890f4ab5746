//! A real guest on a tap, in a network namespace of the test's own: TCP both ways,
//! in segments larger than the link's, and nothing of one life in the next.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::OnceLock;
use std::time::Duration;

use harness::{
    Cache, Console, Extra, MAC, Shape, Snapshot, TestMachine, Vmm, begin, boot_root_with, finish,
    restore_onto, restored_with, result_of,
};
use rustix::thread::UnshareFlags;
use serde_json::{Value, json};
use snapback_proto::control::{Command, Reply};
use snapback_vmm::sys::{jail, tap};

const HOST: &str = "10.0.0.1";
const GUEST: &str = "10.0.0.2";
const MTU: u64 = 1500;

fn ip(arguments: &[&str]) -> Vec<u8> {
    let done = process::Command::new("ip")
        .args(arguments)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {arguments:?}: {error}");
    done.stdout
}

/// A tap in a network namespace that this thread is in from now on.
fn own_tap() -> OwnedFd {
    jail::unshare(UnshareFlags::NEWNET).unwrap();
    let mut options = File::options();
    let device = options.read(true).write(true).open("/dev/net/tun").unwrap();
    tap::attach(device.as_fd(), "tap0").unwrap();
    ip(&["link", "set", "lo", "up"]);
    ip(&["addr", "add", &format!("{HOST}/24"), "dev", "tap0"]);
    ip(&["link", "set", "tap0", "up"]);
    device.into()
}

/// What went through the tap, as the host sees it: bytes per packet from the guest
/// and to it, of what came since `before`.
fn per_packet(before: &Value, now: &Value) -> [u64; 2] {
    ["rx", "tx"].map(|way| {
        let since = |what: &str| {
            let count = |value: &Value| value["stats64"][way][what].as_u64().unwrap();
            count(now) - count(before)
        };
        since("bytes") / since("packets").max(1)
    })
}

fn counters() -> Value {
    let all: Value = serde_json::from_slice(&ip(&["-s", "-j", "link", "show", "tap0"])).unwrap();
    all[0].clone()
}

/// Gives the guest its address, and a socket that exists in every life.
const SET_UP: &str = "import subprocess
for words in ('addr add 10.0.0.2/24 dev eth0', 'link set eth0 up'):
    subprocess.run(['busybox', 'ip', *words.split()], check=True)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(('10.0.0.2', 9))
udp.settimeout(20)
listener = socket.create_server(('10.0.0.2', 80))
block = bytes(range(251)) * 1000
def send(connection, blocks):
    for _ in range(blocks):
        connection.sendall(block)
    connection.shutdown(socket.SHUT_WR)
def check(connection):
    count = 0
    while data := connection.recv(1 << 18):
        if data != (block + block[:251] + block)[count % 251:][:len(data)]: raise ValueError(count)
        count += len(data)
    return count";

fn snapshot() -> &'static Snapshot {
    static SNAPSHOT: OnceLock<Snapshot> = OnceLock::new();
    SNAPSHOT.get_or_init(|| {
        let tap = own_tap();
        let booted = boot_root_with(Shape::SMALL, &on(&tap));
        result_of(&booted.channel, SET_UP);
        booted.snapshot()
    })
}

/// A life of it on a tap of its own, in a namespace of its own.
fn restored() -> (TestMachine, OwnedFd) {
    let snapshot = snapshot();
    let tap = own_tap();
    (restored_with(snapshot, Cache::Warm, &on(&tap)), tap)
}

fn on(tap: &OwnedFd) -> Extra<'_> {
    Extra {
        tap: Some(tap),
        ..Extra::default()
    }
}

/// The byte of the stream at `at`.
fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap()
}

/// Reads the stream to its end. Returns its length.
fn check(stream: &mut TcpStream) -> usize {
    let (mut buffer, mut at) = (vec![0; 1 << 18], 0);
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return at;
        }
        let right = (at..)
            .zip(&buffer[..count])
            .all(|(at, byte)| *byte == pattern(at));
        assert!(right, "between {at} and {}", at + count);
        at += count;
    }
}

const BLOCKS: usize = 40;
const LENGTH: usize = BLOCKS * 251 * 1000;

/// A transfer each way, both checked byte by byte.
fn transfer(guest: &UnixStream) {
    // From the guest, which connects.
    let listener = TcpListener::bind((HOST, 8080)).unwrap();
    begin(
        guest,
        &format!(
            "c = socket.create_connection(('{HOST}', 8080), 20); send(c, {BLOCKS}); c.close()"
        ),
    );
    let (mut stream, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip().to_string(), GUEST);
    assert_eq!(check(&mut stream), LENGTH);
    finish(guest);
    // To the guest, which is connected to.
    begin(
        guest,
        "c, _ = listener.accept(); result = check(c); c.close()",
    );
    let mut stream = TcpStream::connect((GUEST, 80)).unwrap();
    let block: Vec<u8> = (0..251 * 1000).map(pattern).collect();
    for _ in 0..BLOCKS {
        stream.write_all(&block).unwrap();
    }
    drop(stream);
    assert_eq!(finish(guest), json!(LENGTH));
}

#[test]
fn tcp_is_exact_both_ways_in_every_life_and_in_large_segments() {
    let (machine, _tap) = restored();
    assert_eq!(machine.differences(), Vec::<String>::new());
    for round in 0..3 {
        let guest = machine.run();
        let before = counters();
        transfer(&guest);
        let [from_guest, to_guest] = per_packet(&before, &counters());
        println!("bytes per packet: {from_guest} from the guest, {to_guest} to it");
        // Acknowledgements included, a packet is larger than the link's largest.
        assert!(from_guest > MTU, "{from_guest}");
        assert!(to_guest > MTU, "{to_guest}");
        println!("{:?}", machine.reset());
        let differences = machine.differences();
        assert_eq!(differences, Vec::<String>::new(), "round {round}");
    }
}

#[test]
fn the_guest_sees_its_address_and_takes_what_is_offered() {
    let (machine, _tap) = restored();
    let guest = machine.run();
    let seen = result_of(
        &guest,
        "link = '/sys/class/net/eth0/'
features = open(link + 'device/features').read()
result = [open(link + name).read().strip() for name in ('address', 'carrier', 'mtu')]
result.append([bit for bit in range(64) if features[bit] == '1'])",
    );
    let mac: Vec<String> = MAC.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(seen[0], json!(mac.join(":")));
    assert_eq!((&seen[1], &seen[2]), (&json!("1"), &json!("1500")));
    // Checksums, TSO over IPv4, mergeable buffers, status; indirect, event index, version 1.
    let features = [0, 1, 5, 7, 11, 15, 16, 28, 29, 32];
    assert_eq!(seen[3], json!(features));
}

#[test]
fn a_frame_for_one_life_does_not_reach_the_next() {
    let (machine, _tap) = restored();
    let host = UdpSocket::bind((HOST, 99)).unwrap();
    let link = MAC.map(|byte| format!("{byte:02x}")).join(":");
    // The host knows its neighbour, or its frames would not get as far as the tap.
    ip(&[
        "neigh",
        "add",
        GUEST,
        "lladdr",
        &link,
        "dev",
        "tap0",
        "nud",
        "permanent",
    ]);
    let hear = "result = udp.recvfrom(100)[0].decode()";
    for round in 0..3 {
        // For nobody: the machine stands still.
        for _ in 0..700 {
            host.send_to(b"stale", (GUEST, 9)).unwrap();
        }
        let guest = machine.run();
        let fresh = format!("fresh {round}");
        begin(&guest, hear);
        // The guest runs, and what is sent from now on is meant for it.
        host.send_to(fresh.as_bytes(), (GUEST, 9)).unwrap();
        assert_eq!(finish(&guest), json!(fresh), "round {round}");
        // Frames and answers in flight when the life ends.
        begin(
            &guest,
            &format!("while True: udp.sendto(b'x' * 1400, ('{HOST}', 99))"),
        );
        let mut answer = [0; 1500];
        assert_eq!(host.recv(&mut answer).unwrap(), 1400);
        for _ in 0..100 {
            host.send_to(b"late", (GUEST, 9)).unwrap();
        }
        machine.reset();
        let differences = machine.differences();
        assert_eq!(differences, Vec::<String>::new(), "round {round}");
        host.set_nonblocking(true).unwrap();
        while host.recv(&mut answer).is_ok() {}
        host.set_nonblocking(false).unwrap();
    }
    let guest = machine.run();
    transfer(&guest);
}

#[test]
fn a_reset_in_the_middle_of_transfers_is_complete() {
    let (machine, _tap) = restored();
    let listener = TcpListener::bind((HOST, 8080)).unwrap();
    for round in 0..3 {
        let guest = machine.run();
        begin(
            &guest,
            &format!(
                "def answer():
    c, _ = listener.accept()
    while True: c.sendall(c.recv(1 << 16))
threading.Thread(target=answer).start()
c = socket.create_connection(('{HOST}', 8080), 20); send(c, 1 << 30)"
            ),
        );
        let (mut from, _) = listener.accept().unwrap();
        let mut to = TcpStream::connect((GUEST, 80)).unwrap();
        let mut bytes = vec![0; 1 << 20];
        from.read_exact(&mut bytes).unwrap();
        to.write_all(&bytes[..1 << 16]).unwrap();
        to.read_exact(&mut bytes[..1 << 16]).unwrap();
        machine.reset();
        let differences = machine.differences();
        assert_eq!(differences, Vec::<String>::new(), "round {round}");
    }
    let guest = machine.run();
    drop(listener);
    transfer(&guest);
}

#[test]
fn what_is_no_tap_with_headers_is_refused() {
    let snapshot = snapshot();
    let nothing: OwnedFd = tempfile::tempfile().unwrap().into();
    let vmm = Vmm::start();
    let extra = on(&nothing);
    vmm.prepare_for(snapshot.shape, &extra.devices());
    let files: [&dyn AsFd; 3] = [&snapshot.memory, &snapshot.state, &Console::new().1];
    let (reply, _) = restore_onto(&vmm, snapshot, &extra, files);
    let reply = format!("{reply:?}");
    assert!(reply.contains("the tap cannot be set up"), "{reply}");
}

#[test]
fn a_machine_whose_tap_is_gone_goes_on_and_is_not_put_back() {
    let (machine, _tap) = restored();
    let guest = machine.run();
    ip(&["link", "del", "tap0"]);
    let sent = result_of(
        &guest,
        "udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
for _ in range(1000): udp.sendto(b'x', ('10.0.0.255', 9))
result = 'sent'",
    );
    assert_eq!(sent, json!("sent"));
    match machine.vmm.ask(&Command::RESET, &[]).0 {
        Reply::Failed(failure) => {
            assert_eq!(failure.section.as_deref(), None, "{failure:?}");
            assert!(
                failure.reason.contains("the tap cannot be made ready"),
                "{failure:?}"
            );
        }
        other => panic!("{other:?}"),
    }
}
