//! Tests of the panic notifier.

use super::*;
use crate::bus::GuestEnd;

#[test]
fn only_the_event_that_is_offered_is_taken() {
    for events in 0..=u8::MAX {
        let told = events & read() != 0;
        assert_eq!(
            write(events),
            told.then_some(GuestEnd::Panicked),
            "{events:#x}"
        );
    }
}
