//! Putting a machine back to its snapshot.
