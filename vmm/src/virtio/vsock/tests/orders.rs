//! Whatever happens in whatever order between well-behaved ends: each gets exactly
//! what the other one sent.

use super::*;

const STREAMS: usize = 3;
/// The guest's port of the first stream.
const FIRST: u32 = 1;

#[derive(Debug, Clone)]
enum Act {
    GuestSends(usize, usize),
    HostSends(usize, usize),
    HostReads(usize, usize),
    GuestTakes,
    GuestEnds(usize),
    HostEnds(usize),
    Work,
}

fn act() -> impl Strategy<Value = Act> {
    let stream = 0..STREAMS;
    let some = 1_usize..60_000;
    prop_oneof![
        4 => (stream.clone(), some.clone()).prop_map(|(nth, len)| Act::GuestSends(nth, len)),
        4 => (stream.clone(), some.clone()).prop_map(|(nth, len)| Act::HostSends(nth, len)),
        3 => (stream.clone(), some).prop_map(|(nth, len)| Act::HostReads(nth, len)),
        4 => Just(Act::GuestTakes),
        1 => stream.clone().prop_map(Act::GuestEnds),
        1 => stream.prop_map(Act::HostEnds),
        4 => Just(Act::Work),
    ]
}

/// One stream as both its ends know it.
struct Stream {
    host: UnixStream,
    /// What each side sent and got.
    by_guest: Vec<u8>,
    by_host: Vec<u8>,
    at_guest: Vec<u8>,
    at_host: Vec<u8>,
    guest_ended: bool,
    host_ended: bool,
    /// The guest was told that the host sends no more.
    guest_told: bool,
    /// Room that the guest was promised, and what of it the host has taken.
    room: u32,
    taken: u32,
}

impl Stream {
    /// Bytes that the guest may send.
    fn credit(&self) -> usize {
        let waiting = (self.by_guest.len() as u32).wrapping_sub(self.taken);
        (self.room - waiting) as usize
    }

    fn host_reads(&mut self, len: usize) {
        let mut bytes = vec![0; len];
        match self.host.read(&mut bytes) {
            Ok(read) => self.at_host.extend(&bytes[..read]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}

struct Ends {
    guest: Guest,
    _agent: Agent,
    streams: Vec<Stream>,
}

impl Ends {
    fn new() -> Self {
        let mut guest = Guest::new();
        let agent = guest.attach_hub();
        guest.give_buffers(16);
        let streams = (FIRST..).take(STREAMS).map(|port| {
            guest.say(port, 80, OP_REQUEST, 0, &[]);
            let host = agent.accepts();
            guest.settle();
            let (answer, _) = guest.one_packet();
            assert_eq!(answer.op, OP_RESPONSE);
            Stream {
                host,
                by_guest: Vec::new(),
                by_host: Vec::new(),
                at_guest: Vec::new(),
                at_host: Vec::new(),
                guest_ended: false,
                host_ended: false,
                guest_told: false,
                room: answer.buf_alloc,
                taken: answer.fwd_cnt,
            }
        });
        let streams = streams.collect();
        Self {
            guest,
            _agent: agent,
            streams,
        }
    }

    /// A packet of the guest, with its true credit.
    fn say(&mut self, nth: usize, op: u16, flags: u32, payload: &[u8]) {
        let header = Header {
            src_port: FIRST + nth as u32,
            dst_port: 80,
            fwd_cnt: self.streams[nth].at_guest.len() as u32,
            ..Guest::header(op, flags, payload.len())
        };
        self.guest.send_raw(&header, payload);
    }

    fn guest_takes(&mut self) {
        for (header, payload) in self.guest.packets() {
            let nth = (header.dst_port - FIRST) as usize;
            let stream = &mut self.streams[nth];
            (stream.room, stream.taken) = (header.buf_alloc, header.fwd_cnt);
            match header.op {
                OP_RW => {
                    assert!(!stream.guest_told, "nothing after the end");
                    stream.at_guest.extend(payload);
                }
                OP_SHUTDOWN => stream.guest_told |= header.flags & SHUTDOWN_SEND != 0,
                // It is told below, in any case.
                OP_CREDIT_REQUEST | OP_CREDIT_UPDATE => {}
                other => panic!("{other}"),
            }
            self.say(nth, OP_CREDIT_UPDATE, 0, &[]);
        }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::GuestSends(nth, len) if !self.streams[nth].guest_ended => {
                let stream = &mut self.streams[nth];
                let bytes = pattern(len.min(stream.credit()), stream.by_guest.len());
                stream.by_guest.extend(&bytes);
                self.say(nth, OP_RW, 0, &bytes);
            }
            Act::HostSends(nth, len) if !self.streams[nth].host_ended => {
                let stream = &mut self.streams[nth];
                let bytes = pattern(len, stream.by_host.len());
                if let Ok(sent) = stream.host.write(&bytes) {
                    stream.by_host.extend(&bytes[..sent]);
                }
            }
            Act::HostReads(nth, len) => self.streams[nth].host_reads(len),
            Act::GuestEnds(nth) if !self.streams[nth].guest_ended => {
                self.streams[nth].guest_ended = true;
                self.say(nth, OP_SHUTDOWN, SHUTDOWN_SEND, &[]);
            }
            Act::HostEnds(nth) => {
                self.streams[nth].host_ended = true;
                let _ = self.streams[nth].host.shutdown(Shutdown::Write);
            }
            Act::GuestTakes => self.guest_takes(),
            Act::GuestSends(..) | Act::HostSends(..) | Act::GuestEnds(_) | Act::Work => {
                self.guest.settle();
            }
        }
    }

    fn is_done(&self) -> bool {
        self.streams.iter().all(|stream| {
            stream.at_guest.len() == stream.by_host.len()
                && stream.at_host.len() == stream.by_guest.len()
                && stream.guest_told == stream.host_ended
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn each_end_gets_what_the_other_one_sent(acts in proptest::collection::vec(act(), 1..80)) {
        let mut ends = Ends::new();
        for act in &acts {
            ends.act(act);
        }
        for _ in 0..2000 {
            if ends.is_done() {
                break;
            }
            ends.guest.settle();
            ends.guest_takes();
            ends.streams.iter_mut().for_each(|stream| stream.host_reads(100_000));
        }
        for stream in &mut ends.streams {
            prop_assert!(stream.at_guest == stream.by_host);
            prop_assert!(stream.at_host == stream.by_guest);
            prop_assert_eq!(stream.guest_told, stream.host_ended);
            if stream.guest_ended {
                prop_assert!(is_closed(&mut stream.host), "the host sees the end");
            }
        }
        prop_assert!(!ends.guest.driver.needs_reset());
        prop_assert!(ends.guest.driver.transport.is_quiet());
    }
}
