//! Bytes on their way to a socket that may not take them all at once.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

/// How many segments go to the kernel in one call.
const SEGMENTS_PER_SEND: usize = 16;

/// A queue of byte strings in front of a socket.
///
/// A segment may be shared, so that a request's body is never copied for a second
/// delivery; what is queued together leaves in one system call.
#[derive(Debug, Default)]
pub struct OutputQueue {
    segments: VecDeque<Arc<Vec<u8>>>,
    /// How much of the first segment has been sent.
    sent: usize,
    queued: usize,
}

impl OutputQueue {
    /// Appends bytes.
    pub fn push(&mut self, bytes: Vec<u8>) {
        self.push_shared(Arc::new(bytes));
    }

    /// Appends bytes that somebody else keeps too.
    pub fn push_shared(&mut self, bytes: Arc<Vec<u8>>) {
        if !bytes.is_empty() {
            self.queued += bytes.len();
            self.segments.push_back(bytes);
        }
    }

    /// How many bytes have not been sent yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queued
    }

    /// Whether everything has been sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// Sends as much as the socket takes without blocking.
    ///
    /// # Errors
    /// When the socket fails. A full socket is not a failure.
    pub fn send(&mut self, socket: impl AsFd) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); SEGMENTS_PER_SEND];
            let mut skip = self.sent;
            let mut used = 0;
            for (slice, segment) in slices.iter_mut().zip(&self.segments) {
                *slice = IoSlice::new(&segment[skip..]);
                skip = 0;
                used += 1;
            }
            match sendmsg(
                &socket,
                &slices[..used],
                &mut SendAncillaryBuffer::default(),
                flags,
            ) {
                Ok(taken) => self.advance(taken),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut taken: usize) {
        self.queued = self.queued.saturating_sub(taken);
        while let Some(first) = self.segments.front() {
            let left = first.len() - self.sent;
            if taken < left {
                self.sent += taken;
                return;
            }
            taken -= left;
            self.sent = 0;
            self.segments.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_socket_keeps_the_rest_for_later() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut queue = OutputQueue::default();
        let big = vec![7; 4 * 1024 * 1024];
        queue.push(b"head".to_vec());
        queue.push(big.clone());
        queue.send(&ours).unwrap();
        assert!(!queue.is_empty());

        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            theirs.read_to_end(&mut got).unwrap();
            got
        });
        while !queue.is_empty() {
            queue.send(&ours).unwrap();
        }
        drop(ours);
        let got = reader.join().unwrap();
        assert_eq!(&got[..4], b"head");
        assert_eq!(&got[4..], big);
    }

    proptest! {
        #[test]
        fn whatever_is_taken_at_a_time_the_bytes_stay_in_order(
            segments in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..20), 0..10),
            steps in proptest::collection::vec(1_usize..15, 0..40),
        ) {
            let mut queue = OutputQueue::default();
            for segment in &segments {
                queue.push(segment.clone());
            }
            let all: Vec<u8> = segments.concat();
            let mut taken = 0;
            for step in steps {
                let step = step.min(queue.len());
                queue.advance(step);
                taken += step;
                let left: Vec<u8> = queue.segments.iter().flat_map(|s| s.iter().copied()).collect();
                prop_assert_eq!(&left[queue.sent..], &all[taken..]);
                prop_assert_eq!(queue.len(), all.len() - taken);
            }
        }
    }
}
