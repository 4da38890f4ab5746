//! What a guest that stands at its snapshot is given in the moment it is let go.

use super::{Parts, of_start};
use crate::arch::x86_64::clock::{self, HostInstant};
use crate::devices::vmgenid;
use crate::step::kernel;
use crate::supervisor::{AssembleError, Live, Saved};

/// How a part is given. The snapshot captures clock and counters at one instant
/// (`supervisor/snapshot.rs`); only the guest can compare them.
#[derive(Debug, Clone, Copy)]
pub struct StartPart {
    /// Gives it. The instant is the one from which the guest's time goes on.
    pub restore: fn(&Live, &Saved, &mut HostInstant) -> Result<(), AssembleError>,
}

/// Frames that wait in the tap.
pub const FRAMES: StartPart = StartPart {
    restore: |live, _, _| {
        let dropped = live.board.bus().drop_queued_frames();
        Ok(dropped.map_err(kernel("drop the frames of an earlier life"))?)
    },
};

/// The generation id and its interrupt.
pub const GENERATION_ID: StartPart = StartPart {
    restore: |live, _, _| {
        let told = vmgenid::renew(&live.board.ram)?;
        let pulsed = live.board.pulse(told);
        Ok(pulsed.map_err(kernel("raise the interrupt of the VM generation id"))?)
    },
};

/// KVM's clock.
pub const CLOCK: StartPart = StartPart {
    restore: |live, saved, at| {
        let started = clock::start(&live.board.vm, &saved.clock);
        *at = started.map_err(kernel("set the guest's clock"))?;
        Ok(())
    },
};

/// Counters and deadlines.
pub const COUNTERS: StartPart = StartPart {
    restore: |live, saved, at| {
        for (vcpu, state) in live.vcpus.iter().zip(&saved.processors) {
            vcpu.set_time(&state.time, *at)?;
        }
        Ok(())
    },
};

/// Gives a guest that stands at its snapshot the parts that it starts with.
///
/// # Errors
/// When there is no new id, KVM does not take the time or a vCPU's thread is gone.
pub fn give(live: &Live, saved: &Saved, parts: Parts) -> Result<(), AssembleError> {
    let mut at = HostInstant::now();
    of_start(parts).try_for_each(|(_, part)| (part.restore)(live, saved, &mut at))
}
