//! What the VMM process gives up before it runs a guest.
