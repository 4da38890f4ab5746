//! Many lives of one machine: whatever a Python function does, the next request finds the
//! snapshot.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;

use std::time::Duration;

use harness::{Cache, restored};

/// What functions do, as Python expressions; `COUNT` is a number from 1 to 200.
const ACTIVITIES: [&str; 12] = [
    "len([bytearray(4096 * COUNT) for _ in range(10)])",
    "open('/tmp/file', 'wb').write(__import__('os').urandom(4096 * COUNT))",
    "[__import__('os').mkdir(f'/tmp/{n}') for n in range(COUNT)]",
    "[t.start() for t in [__import__('threading').Timer(0.001 * n, print) for n in range(COUNT % 20)]]",
    "__import__('signal').setitimer(__import__('signal').ITIMER_REAL, 1000 + COUNT)",
    "[__import__('os').fork() or __import__('os')._exit(COUNT % 3) for _ in range(3)]",
    "[__import__('subprocess').Popen(['/bin/sleep', '1000']) for _ in range(2)]",
    "[s.bind(('127.0.0.1', 20000 + COUNT)) for s in [__import__('socket').socket()]]",
    // Rounding and exception flags of both floating-point units.
    "[__import__('ctypes').CDLL(None).fesetround(0x800), sum(1 / n for n in range(1, 100 * COUNT))]",
    "[__import__('time').sleep(0.0001 * COUNT), __import__('os').sched_yield()]",
    // From the disk, into the page cache.
    "sum(len(open(path, 'rb').read()) for path in __import__('glob').glob('/usr/lib/python3.11/*.py')[:COUNT])",
    "__import__('gc').collect() + len(globals().setdefault('kept', []) + [object()] * 1000 * COUNT)",
];

/// Numbers from a seed (xorshift; G. Marsaglia, 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn a_hundred_requests_of_random_activity_are_all_put_back_equal() {
    let seed = harness::wall_clock_ns() | 1;
    let mut numbers = Numbers(seed);
    let mut machine = restored(Cache::Warm);
    let mut dirty = Vec::new();
    for round in 0..100 {
        let activity = &ACTIVITIES[usize::try_from(numbers.below(12)).unwrap()];
        let activity = activity.replace("COUNT", &(1 + numbers.below(200)).to_string());
        if round % 10 == 9 {
            // Somewhere in the middle.
            let event = serde_json::json!({ "look": activity }).to_string();
            let _channel = machine.begin(&event);
            std::thread::sleep(Duration::from_millis(numbers.below(20)));
            dirty.push(machine.reset().pages);
        } else {
            machine.look(&activity);
            dirty.push(machine.reset().pages);
        }
        let differences = machine.differences();
        assert_eq!(
            differences,
            Vec::<String>::new(),
            "round {round}, seed {seed}: {activity}"
        );
    }
    dirty.sort_unstable();
    println!(
        "pages put back: {} to {}, half of them below {}",
        dirty[0], dirty[99], dirty[50]
    );
    assert_eq!(machine.request("{}"), r#"{"calls": 1, "trace": 1}"#);
}
