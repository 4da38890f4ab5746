//! Framed seqpacket and descriptors to supervisor commands.
