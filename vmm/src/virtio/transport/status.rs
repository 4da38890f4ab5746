//! The device status field (section 2.1) and the order of initialisation (3.1.1):
//!
//! ```text
//!  0 ─► ACKNOWLEDGE ─► DRIVER ─► FEATURES_OK ─► DRIVER_OK ──► NEEDS_RESET
//!  ▲        (each step once, in order; FAILED may come at any time)    │
//!  └───────────────────────── write of 0 ───────────────────────────────┘
//! ```

/// The driver has noticed the device.
pub(super) const ACKNOWLEDGE: u32 = 1;
/// The driver knows how to drive it.
pub(super) const DRIVER: u32 = 2;
/// The driver is set up: the device is live.
pub(super) const DRIVER_OK: u32 = 4;
/// The device accepted the driver's choice of features.
pub(super) const FEATURES_OK: u32 = 8;
/// The device gave up; set by the device.
pub(super) const NEEDS_RESET: u32 = 64;
/// The driver gave up.
pub(super) const FAILED: u32 = 128;

const ALL: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | NEEDS_RESET | FAILED;

/// A step that a write of the status field takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, or a step that is not allowed now.
    None,
    /// Write of 0: back to the beginning.
    Reset,
    /// A bit that needs no check is to be set.
    Set(u32),
    /// The driver wants its features accepted: to be checked.
    CheckFeatures,
    /// The driver goes live.
    GoLive,
}

/// What a write of `value` means while the field reads `current`. Bits cannot be
/// cleared one by one, and each step needs the one before it.
pub(super) fn step(current: u32, value: u32) -> Step {
    if value == 0 {
        return Step::Reset;
    }
    match value & ALL & !NEEDS_RESET & !current {
        added if added & FAILED != 0 => Step::Set(FAILED),
        _ if current & (FAILED | NEEDS_RESET) != 0 => Step::None,
        ACKNOWLEDGE => Step::Set(ACKNOWLEDGE),
        // Both at once is what some firmware does; it skips nothing.
        added if added == ACKNOWLEDGE | DRIVER => Step::Set(added),
        DRIVER if current & ACKNOWLEDGE != 0 => Step::Set(DRIVER),
        FEATURES_OK if current & DRIVER != 0 => Step::CheckFeatures,
        DRIVER_OK if current & FEATURES_OK != 0 => Step::GoLive,
        _ => Step::None,
    }
}

/// Whether the field can read `status` after some steps.
pub(super) fn is_reachable(status: u32) -> bool {
    const STEPS: [u32; 5] = [
        0,
        ACKNOWLEDGE,
        ACKNOWLEDGE | DRIVER,
        ACKNOWLEDGE | DRIVER | FEATURES_OK,
        ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
    ];
    // Only a driver that got as far as setting up queues can break something.
    let broken = status & NEEDS_RESET == 0 || status & FEATURES_OK != 0;
    broken && STEPS.contains(&(status & !(NEEDS_RESET | FAILED)))
}
