//! Real probes of what the host offers.
