//! What is not in the table, and why.
//!
//! | state | why it is not there |
//! |---|---|
//! | PIT, RTC, PM timer, HPET | the machine has none ([decision 0002](../../../../docs/decisions/0002-hardware-reduced-machine.md)) |
