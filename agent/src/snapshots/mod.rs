//! The catalogue of snapshots on disk, and the ones that this agent has loaded.
//!
//! ```text
//!  <state>/snapshots/<id>/snapshot.json   written last
//!                         state           what the VMM wrote
//!                         memory          sparse; a diff's has only what differs
//!                         memory-map      of a diff: the pages that are its own
//!                         working-set     what the first run touched, a hint
//! ```
//!
//! A snapshot appears whole (by a rename) or not at all. Its bytes are checked
//! against its hashes the first time an agent process loads it, which is when a
//! snapshot is imported; one that this process has made itself is loaded already.
//! What was checked is not checked again: restores get the state from a sealed copy,
//! and the memory from the files that were open when they were checked.

mod catalogue;
mod checked;
mod draft;
mod error;
mod files;
mod hints;
mod loaded;
mod writes;

pub use catalogue::Catalogue;
pub use draft::{Draft, Parts};
pub use error::SnapshotError;
pub use files::SnapshotFiles;
pub use hints::FirstRun;
pub use loaded::{Disks, Snapshot};
pub use writes::Watcher;

#[cfg(test)]
mod tests;
