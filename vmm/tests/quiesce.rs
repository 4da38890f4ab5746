//! A snapshot of a guest whose devices are at work loses nothing and repeats
//! nothing; a reset in the middle of such work drops all of it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use harness::{
    Booted, Cache, Console, PATTERN, Shape, Snapshot, boot_root, restored_from, send_code,
};
use snapback_proto::control::{Command, Reply};

/// Numbered lines to the serial port and to the host, and reads of the disk past
/// the page cache, all at once and for ever.
const HAMMER: &str = r#"
import mmap, random
stop, reads, trouble = False, 0, []

def hammer(work):
    def loop():
        number = 0
        try:
            while not stop:
                work(number)
                number += 1
        except BaseException:
            trouble.append(traceback.format_exc())
    thread = threading.Thread(target=loop)
    thread.start()
    return thread

def read_disk(number):
    global reads
    first = random.randrange(FIRST, LAST - 16)
    disk_buffer.seek(0)
    got = os.preadv(disk, [disk_buffer], first * 512)
    expected = b"".join(struct.pack("<Q", first + n) * 64 for n in range(16))
    assert got == 8192 and disk_buffer[:] == expected, (first, got)
    reads += 1

disk = os.open("/dev/vdb", os.O_RDONLY | os.O_DIRECT)
disk_buffer = mmap.mmap(-1, 8192)
# The kernel writes each line to the serial port, and waits for nothing.
with open("/proc/sys/kernel/printk_devkmsg", "w") as setting:
    setting.write("on\n")
log = os.open("/dev/kmsg", os.O_WRONLY)
threads = [
    hammer(lambda number: os.write(log, b"<0>s%06d" % number)),
    hammer(lambda number: channel.sendall(b"v%06d\n" % number)),
    hammer(read_disk),
]
"#;

/// Ends the work and tells what became of it.
const STOP: &str = r"
begun = reads
time.sleep(0.2)
stop = True
for thread in threads: thread.join(20)
alive = sum(thread.is_alive() for thread in threads)
answer = [alive, trouble, reads > begun]
";

fn busy_guest() -> Booted {
    let shape = Shape {
        vcpus: 2,
        ..Shape::SMALL
    };
    let booted = boot_root(shape);
    let hammer = HAMMER
        .replace("FIRST", &PATTERN.start.to_string())
        .replace("LAST", &PATTERN.end.to_string());
    send_code(&booted.channel, &hammer);
    booted.console.wait_for("s000000");
    booted
}

/// Reads `channel` until the machine has no more to say.
fn drain(channel: &UnixStream) -> std::thread::JoinHandle<String> {
    let mut channel = channel.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = channel.read_to_string(&mut text);
        text
    })
}

/// The numbers of lines `s000000`, `s000001`, … in `text`, which may begin with
/// something else; the last one may be cut off.
fn assert_counts_up(text: &str, letter: char) {
    let text = text.replace('\r', "");
    let first = format!("{letter}000000\n");
    let begin = text.find(&first).unwrap_or_else(|| panic!("{text:.300}"));
    let lines: Vec<_> = text[begin..].split_inclusive('\n').collect();
    let (last, whole) = lines.split_last().unwrap();
    assert!(whole.len() > 2, "{} lines", whole.len());
    for (number, line) in whole.iter().enumerate() {
        assert_eq!(
            *line,
            format!("{letter}{number:06}\n"),
            "of {}",
            whole.len()
        );
    }
    assert!(format!("{letter}{:06}\n", whole.len()).starts_with(last.trim_end_matches('\n')));
}

/// What a busy guest had said when its snapshot was taken.
struct Before {
    serial: String,
    channel: String,
}

fn snapshot_at_work(after: Duration) -> (Snapshot, Before) {
    let booted = busy_guest();
    let console = booted.console.clone();
    let said = drain(&booted.channel);
    std::thread::sleep(after);
    let snapshot = booted.snapshot();
    let channel = said.join().unwrap();
    let serial = settled(&console);
    (snapshot, Before { serial, channel })
}

/// A console whose machine has ended, once its reader has read everything.
fn settled(console: &Console) -> String {
    let mut text = console.text();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = console.text();
        if now == text {
            return text;
        }
        text = now;
    }
}

/// Lets the guest go on for a while and stops its work: everything it had begun
/// has been done once.
fn assert_continues(machine: &harness::TestMachine, before: &Before, heard: usize) {
    let mut channel = machine.run();
    send_code(&channel, STOP);
    let (mut text, mut bytes) = (String::new(), [0; 4096]);
    while !text.ends_with("\"\n") {
        let count = channel.read(&mut bytes).unwrap();
        assert!(count > 0, "the machine is gone after {text:.300}");
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    let (lines, answer) = text.split_at(text.find('"').unwrap());
    assert_eq!(
        answer, "\"[0, [], True]\"\n",
        "threads that hang, errors, progress"
    );
    assert_counts_up(&format!("{}{lines}", before.channel), 'v');
    let serial = settled(&machine.console);
    assert_counts_up(&format!("{}{}", before.serial, &serial[heard..]), 's');
}

#[test]
fn a_snapshot_at_any_moment_finishes_what_was_in_flight_once() {
    for moment in [37, 411] {
        let (snapshot, before) = snapshot_at_work(Duration::from_millis(moment));
        let machine = restored_from(&snapshot, Cache::Cold);
        assert_eq!(machine.differences(), Vec::<String>::new(), "{moment} ms");
        assert_continues(&machine, &before, 0);
    }
}

#[test]
fn a_reset_in_the_middle_of_device_work_drops_it() {
    let (snapshot, before) = snapshot_at_work(Duration::from_millis(300));
    let machine = restored_from(&snapshot, Cache::Cold);
    for round in 0..8 {
        let said = drain(&machine.run());
        std::thread::sleep(Duration::from_millis(30 + 17 * round));
        machine.reset();
        said.join().unwrap();
        assert_eq!(machine.differences(), Vec::<String>::new(), "{round}");
    }
    let heard = settled(&machine.console).len();
    assert_continues(&machine, &before, heard);
}

#[test]
fn a_snapshot_that_cannot_come_to_rest_says_why_and_ends_the_machine() {
    // Nobody takes what this guest sends.
    let booted = busy_guest();
    std::thread::sleep(Duration::from_secs(2));
    let state = tempfile::tempfile().unwrap();
    match booted.vmm.ask(&Command::Snapshot, &[&state]).0 {
        Reply::Failed(failure) => {
            assert!(failure.reason.contains("work in flight"), "{failure:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(state.metadata().unwrap().len(), 0, "nothing was written");
    let (reply, _) = booted.vmm.ask(&Command::Snapshot, &[&state]);
    assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
}
