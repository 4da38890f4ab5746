//! Tests with real sockets.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use super::*;

fn adopted(device: &DevicePoll, id: u64) -> (HostFd, UnixStream) {
    let (ours, host) = UnixStream::pair().unwrap();
    (device.adopt(ours.into(), id).unwrap(), host)
}

fn ready(poll: &HostPoll) -> Vec<(usize, u64, bool, bool)> {
    let mut ready: Vec<_> = poll
        .ready()
        .unwrap()
        .iter()
        .map(|r| (r.device, r.id, r.readable, r.writable))
        .collect();
    ready.sort_unstable();
    ready
}

#[test]
fn what_is_ready_names_device_and_descriptor() {
    let poll = HostPoll::new().unwrap();
    let last = (1 << ID_BITS) - 1;
    let (mut first, mut host) = adopted(&poll.device(0), last);
    let (mut second, _keep) = adopted(&poll.device(255), 7);
    first.want(Interest::READABLE).unwrap();
    second.want(Interest::READABLE).unwrap();
    assert_eq!(ready(&poll), []);
    host.write_all(b"x").unwrap();
    assert_eq!(ready(&poll), [(0, last, true, false)]);
    let both = Interest {
        writable: true,
        ..Interest::READABLE
    };
    second.want(both).unwrap();
    assert_eq!(
        ready(&poll),
        [(0, last, true, false), (255, 7, false, true)]
    );
    first.want(Interest::NONE).unwrap();
    second.want(Interest::READABLE).unwrap();
    assert_eq!(ready(&poll), []);
}

#[test]
fn an_end_that_is_gone_is_reported_only_to_whom_it_interests() {
    let poll = HostPoll::new().unwrap();
    let (mut fd, host) = adopted(&poll.device(1), 1);
    fd.want(Interest::READABLE).unwrap();
    drop(host);
    assert_eq!(ready(&poll), [(1, 1, true, true)]);
    fd.want(Interest::NONE).unwrap();
    assert_eq!(ready(&poll), []);
    let end = Interest {
        hangup: true,
        ..Interest::NONE
    };
    fd.want(end).unwrap();
    assert!(poll.ready().unwrap()[0].hangup);
    let (mut half, host) = adopted(&poll.device(1), 2);
    half.want(end).unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    fd.want(Interest::NONE).unwrap();
    assert_eq!(ready(&poll), [], "only one direction has ended");
}

#[test]
fn a_closed_descriptor_is_not_waited_for_even_when_a_duplicate_lives() {
    let poll = HostPoll::new().unwrap();
    let (ours, mut host) = UnixStream::pair().unwrap();
    let mut duplicate = ours.try_clone().unwrap();
    let mut fd = poll.device(0).adopt(ours.into(), 1).unwrap();
    fd.want(Interest::READABLE).unwrap();
    host.write_all(b"x").unwrap();
    drop(fd);
    assert_eq!(ready(&poll), []);
    // Another one, most likely with the same number.
    let (mut other, _keep) = adopted(&poll.device(0), 2);
    other.want(Interest::READABLE).unwrap();
    assert_eq!(ready(&poll), []);
    assert_eq!(duplicate.read(&mut [0; 2]).unwrap(), 1);
}

#[test]
fn more_than_a_batch_has_its_turn() {
    let poll = HostPoll::new().unwrap();
    let device = poll.device(3);
    let count = BATCH as u64 * 3;
    let ends: Vec<_> = (0..count)
        .map(|id| {
            let (mut fd, mut host) = adopted(&device, id);
            fd.want(Interest::READABLE).unwrap();
            host.write_all(b"x").unwrap();
            (fd, host)
        })
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..3 {
        seen.extend(ready(&poll).into_iter().map(|(_, id, ..)| id));
    }
    assert_eq!(seen.len() as u64, count);
    drop(ends);
    assert_eq!(ready(&poll), []);
}

#[test]
fn an_adopted_descriptor_does_not_block() {
    let poll = HostPoll::new().unwrap();
    let (fd, _host) = adopted(&poll.device(0), 0);
    let error = rustix::io::read(&fd, &mut [0; 1]).unwrap_err();
    assert_eq!(error, Errno::AGAIN);
}
