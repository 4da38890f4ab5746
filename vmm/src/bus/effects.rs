//! What an access asks of the machine.
//!
//! Devices hold no VM: they say what should happen, and whoever made the access
//! (a vCPU thread or the I/O thread) does it.

/// A set of interrupt lines, each below 32.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Lines(u32);

impl Lines {
    /// No line.
    pub const NONE: Lines = Lines(0);

    /// The set of one line; a line that the interrupt controller does not have is
    /// left out.
    #[must_use]
    pub fn one(gsi: u32) -> Self {
        Lines(1_u32.checked_shl(gsi).unwrap_or(0))
    }

    /// Whether no line is in the set.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `gsi` is in the set.
    #[must_use]
    pub fn contains(self, gsi: u32) -> bool {
        self.0 & Lines::one(gsi).0 != 0
    }

    /// Both sets' lines.
    #[must_use]
    pub fn union(self, other: Lines) -> Self {
        Lines(self.0 | other.0)
    }

    /// The lines, lowest first.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..u32::BITS).filter(move |gsi| self.contains(*gsi))
    }
}

/// How a guest ends by its own doing. Where two ends meet, the later one in this
/// list is the one that counts: a kernel that panics may go on to reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GuestEnd {
    /// It powered off.
    PoweredOff,
    /// It asked for a reset of the machine, or crashed so hard that hardware would
    /// reset.
    Rebooted,
    /// Its kernel panicked.
    Panicked,
}

/// What an access asks of the machine; the caller has to do it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[must_use = "effects do nothing until somebody applies them"]
pub struct Effects {
    /// Lines to pulse (all are edge-triggered): raise, then lower.
    pub interrupts: Lines,
    /// The guest is over: it must not run on.
    pub ended: Option<GuestEnd>,
    /// A device stopped at its bound with work left: the I/O thread has to call
    /// `Bus::continue_work` soon, after it looked at everything else.
    pub more_work: bool,
}

impl Effects {
    /// Nothing to do.
    pub const NONE: Effects = Effects {
        interrupts: Lines::NONE,
        ended: None,
        more_work: false,
    };

    /// The end of the guest, if it is one.
    pub const fn end(ended: Option<GuestEnd>) -> Self {
        Effects {
            ended,
            ..Self::NONE
        }
    }

    /// Adds what `other` asks for.
    pub fn merge(&mut self, other: Effects) {
        self.interrupts = self.interrupts.union(other.interrupts);
        self.ended = self.ended.max(other.ended);
        self.more_work |= other.more_work;
    }
}
