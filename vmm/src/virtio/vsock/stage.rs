//! What a connection is, and what each packet of the guest does to it.
//!
//! ```text
//!  guest REQUEST ──► Asked ──── the hub accepts ────► Open ──► gone
//!                      └─ the hub refuses: gone        ▲
//!  hub Connect ────► Calling ── guest RESPONSE ────────┘
//!                      └─ guest RST: gone
//! ```
//!
//! The channel's connection is open at once. An open connection may have ended in
//! one direction or the other (section 5.10.6.5); it is gone when either side resets
//! it.

use super::packet::{OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_RESPONSE, OP_RST, OP_RW, OP_SHUTDOWN};

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The guest asked for it, and the hub has not answered.
    Asked,
    /// The hub asked for it, under this number, and the guest has not answered.
    Calling(u64),
    /// Both ends are there.
    Open,
}

/// What a packet does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// The guest takes the connection.
    Establish,
    /// Payload for the host.
    Payload,
    /// The guest ends one direction or both.
    Shutdown,
    /// Nothing but news of credit.
    Hear,
    /// The guest wants to know its credit.
    TellCredit,
    /// The guest forgot the connection: so do we.
    Forget,
    /// It breaks the rules: the connection is reset.
    Reset,
}

impl Stage {
    /// What a packet with operation `op` does to a connection.
    pub(super) fn on_packet(self, op: u16) -> Action {
        match (self, op) {
            (_, OP_RST) => Action::Forget,
            (Self::Calling(_), OP_RESPONSE) => Action::Establish,
            (Self::Open, OP_RW) => Action::Payload,
            (Self::Open, OP_SHUTDOWN) => Action::Shutdown,
            (Self::Open, OP_CREDIT_UPDATE) => Action::Hear,
            (Self::Open, OP_CREDIT_REQUEST) => Action::TellCredit,
            // A second REQUEST, a RESPONSE that nobody waits for, an operation that
            // does not exist, or anything before the connection is there.
            _ => Action::Reset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_in_every_stage() {
        use Action::{Establish, Forget, Hear, Payload, Reset, Shutdown, TellCredit};
        // Operations 0 to 8; 0 and 8 do not exist.
        let table = [
            (
                Stage::Asked,
                [
                    Reset, Reset, Reset, Forget, Reset, Reset, Reset, Reset, Reset,
                ],
            ),
            (
                Stage::Calling(1),
                [
                    Reset, Reset, Establish, Forget, Reset, Reset, Reset, Reset, Reset,
                ],
            ),
            (
                Stage::Open,
                [
                    Reset, Reset, Reset, Forget, Shutdown, Payload, Hear, TellCredit, Reset,
                ],
            ),
        ];
        for (stage, actions) in table {
            for (op, action) in (0..).zip(actions) {
                assert_eq!(stage.on_packet(op), action, "{stage:?} {op}");
            }
            assert_eq!(stage.on_packet(u16::MAX), Reset);
        }
    }
}
