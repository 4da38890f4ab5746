//! Pages that lie next to each other: what the guest's kernel does for `Gather`
//! (`kernel-configs/gather.c`).

use std::fs::File;
use std::io::{self, Read as _, Write as _};

use snapback_proto::guest::Gather;

/// Takes numbers of pages, and tells how many were moved.
const FILE: &str = "/proc/gather";

/// Where pages go.
#[derive(Debug, Clone, Copy)]
enum Where {
    /// To the place with the most of those that cannot be moved.
    Beside = 0,
    /// To a place that is free as a whole.
    Apart = 1,
}

/// Has pages of processes moved; how many.
///
/// # Errors
/// When the kernel has no such file, or refuses.
pub fn gather(pages: &Gather) -> io::Result<u32> {
    let written = move_pages(Where::Beside, &pages.written)?;
    let read = move_pages(Where::Apart, &pages.read)?;
    Ok(written.saturating_add(read))
}

fn move_pages(place: Where, pages: &[u32]) -> io::Result<u32> {
    if pages.is_empty() {
        return Ok(0);
    }
    let words = std::iter::once(place as u32).chain(pages.iter().copied());
    let named: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
    let mut file = File::options().read(true).write(true).open(FILE)?;
    // In one piece: the kernel takes one write.
    if file.write(&named)? != named.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut told = String::new();
    file.read_to_string(&mut told)?;
    told.trim_end().parse().map_err(io::Error::other)
}
