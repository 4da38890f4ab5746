//! The catalogue of snapshots on disk, and the ones that this agent has loaded.
//!
//! ```text
//!  <state>/snapshots/<id>/snapshot.json   written last
//!                         state           what the VMM wrote
//!                         memory          sparse
//!                         working-set     what the first run touched, a hint
//! ```
//!
//! A snapshot appears whole (by a rename) or not at all. Its bytes are checked
//! against its hashes the first time an agent process loads it; one that this
//! process has made itself is loaded already.

mod catalogue;
mod draft;
mod error;
mod hints;
mod loaded;

pub use catalogue::Catalogue;
pub use draft::{Draft, Parts};
pub use error::SnapshotError;
pub use hints::FirstRun;
pub use loaded::{Disks, Snapshot};
