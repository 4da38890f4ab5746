//! The snapshot format: a directory whose every byte is untrusted input.
//!
//! ```text
//!  snapshot.json   what it is: ids, versions, machine, processor, hashes   manifest
//!  state           header, typed sections with a hash each, end           writer, reader
//!  memory          sparse; a hash per 2 MiB                               memory, layers
//!  memory-map      of a diff: the pages that its memory defines           page_map
//! ```
//!
//! * [`StateWriter`] and [`StateReader`] carry sections; what a section holds is an
//!   explicit, versioned struct of the part it belongs to (processor, devices, …).
//! * [`manifest`] and [`memory`] are for the agent, which creates, imports and
//!   verifies snapshots. A VMM process only ever sees descriptors: nothing here
//!   opens a path.
//!
//! `docs/snapshot-format.md` describes the bytes; [`format`](self::format) pins
//! the numbers.

mod digest;
mod error;
pub mod format;
pub mod layers;
pub mod manifest;
pub mod memory;
pub mod page_map;
mod reader;
pub mod sums;
mod writer;

pub use digest::{Digest, InvalidDigest};
pub use error::{HeaderFault, ReadError, SectionFault, WriteError};
pub use format::{Architecture, SectionKind};
pub use reader::{SectionInfo, StateReader};
pub use writer::{StateWriter, Written};

#[cfg(test)]
mod tests;
