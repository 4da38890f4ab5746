//! Who has room for how much (section 5.10.6.3). All counters wrap.

use super::packet::Header;
use super::state::ChannelV1;

/// Most bytes on their way to a guest, whatever room it claims to have: so that it
/// can be told which of two wrapping counters is ahead.
pub(super) const MAX_IN_FLIGHT: u32 = 1 << 30;

/// A guest told that it took bytes that were never sent to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lie;

/// Both directions' credit of one connection.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Credit {
    /// Room that the guest was promised.
    pub buf_alloc: u32,
    pub peer_buf_alloc: u32,
    pub peer_fwd_cnt: u32,
    pub tx_cnt: u32,
    pub rx_cnt: u32,
    pub fwd_cnt: u32,
    pub told_fwd_cnt: u32,
    /// The guest was asked for credit and has not given any since.
    pub requested: bool,
}

impl Credit {
    pub(super) fn new(buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            ..Self::default()
        }
    }

    /// The credit of a snapshot, in which nothing waits for the host.
    pub(super) fn restored(state: &ChannelV1, buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            peer_buf_alloc: state.peer_buf_alloc,
            peer_fwd_cnt: state.peer_fwd_cnt,
            tx_cnt: state.tx_cnt,
            rx_cnt: state.rx_cnt,
            fwd_cnt: state.rx_cnt,
            told_fwd_cnt: state.told_fwd_cnt,
            requested: state.credit_requested,
        }
    }

    /// Notes what the guest tells in every packet.
    pub(super) fn hear(&mut self, header: &Header) -> Result<(), Lie> {
        let ahead = header.fwd_cnt.wrapping_sub(self.peer_fwd_cnt);
        if ahead <= self.in_flight() {
            self.peer_fwd_cnt = header.fwd_cnt;
        } else if ahead.wrapping_neg() > MAX_IN_FLIGHT {
            return Err(Lie);
        }
        // Else an older packet was overtaken by a newer one on its way to the queue.
        self.peer_buf_alloc = header.buf_alloc;
        if self.send_room() > 0 {
            self.requested = false;
        }
        Ok(())
    }

    /// Bytes that were sent and that the guest has not taken.
    fn in_flight(&self) -> u32 {
        self.tx_cnt.wrapping_sub(self.peer_fwd_cnt)
    }

    /// Bytes that the guest has room for.
    pub(super) fn send_room(&self) -> u32 {
        let room = self.peer_buf_alloc.min(MAX_IN_FLIGHT);
        room.saturating_sub(self.in_flight())
    }

    /// Bytes that the guest may still send. A guest that sends more breaks the rules.
    pub(super) fn receive_room(&self) -> u32 {
        let waiting = self.rx_cnt.wrapping_sub(self.fwd_cnt);
        self.buf_alloc.saturating_sub(waiting)
    }

    /// Whether the guest believes that less than half of the room is left, and is
    /// wrong. (Telling it of every byte would double the packets.)
    pub(super) fn update_due(&self) -> bool {
        let believed = self.rx_cnt.wrapping_sub(self.told_fwd_cnt);
        believed > self.buf_alloc / 2 && self.told_fwd_cnt != self.fwd_cnt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    /// Credit that has sent `sent` bytes from counter `from` on.
    fn sent(from: u32, sent: u32) -> Credit {
        Credit {
            peer_buf_alloc: 1000,
            peer_fwd_cnt: from,
            tx_cnt: from.wrapping_add(sent),
            ..Credit::new(100)
        }
    }

    #[test]
    fn what_was_never_sent_cannot_have_been_taken() {
        for from in [0, 5, u32::MAX - 300] {
            let at = |n: u32| from.wrapping_add(n);
            let mut credit = sent(from, 600);
            assert_eq!(credit.hear(&told(1000, at(400))), Ok(()));
            assert_eq!(credit.send_room(), 800);
            // Overtaken on its way: its room counts, its counter does not.
            assert_eq!(credit.hear(&told(900, at(300))), Ok(()));
            assert_eq!(credit.send_room(), 700);
            assert_eq!(credit.hear(&told(900, at(601))), Err(Lie));
            assert_eq!(credit.hear(&told(900, at(1 << 31))), Err(Lie));
            assert_eq!(credit.hear(&told(900, at(600))), Ok(()));
            assert_eq!(credit.send_room(), 900);
        }
    }

    #[test]
    fn room_never_runs_below_nothing_or_above_what_can_be_told_apart() {
        let mut credit = sent(0, 600);
        assert_eq!(credit.hear(&told(100, 0)), Ok(()));
        assert_eq!(credit.send_room(), 0, "the guest shrank its buffer");
        assert_eq!(credit.hear(&told(u32::MAX, 600)), Ok(()));
        assert_eq!(credit.send_room(), MAX_IN_FLIGHT);
    }

    #[test]
    fn a_request_for_credit_stands_until_there_is_some() {
        let mut credit = sent(0, 1000);
        credit.requested = true;
        assert_eq!(credit.hear(&told(1000, 0)), Ok(()));
        assert!(credit.requested);
        assert_eq!(credit.hear(&told(1000, 1)), Ok(()));
        assert!(!credit.requested);
    }
}
