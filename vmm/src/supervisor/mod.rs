//! The VM's one state machine.
