//! Pages that lie next to each other: what the guest's kernel does for `Gather`
//! (`kernel-configs/gather.c`).

use std::fs::File;
use std::io::{self, Read as _, Write as _};

/// Takes numbers of pages, and tells how many were moved.
const FILE: &str = "/proc/gather";

/// Has pages of processes moved; how many.
///
/// # Errors
/// When the kernel has no such file, or refuses.
pub fn gather(pages: &[u32]) -> io::Result<u32> {
    let named: Vec<u8> = pages.iter().flat_map(|page| page.to_ne_bytes()).collect();
    if named.is_empty() {
        return Ok(0);
    }
    let mut file = File::options().read(true).write(true).open(FILE)?;
    // In one piece: the kernel takes one write.
    if file.write(&named)? != named.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut told = String::new();
    file.read_to_string(&mut told)?;
    told.trim_end().parse().map_err(io::Error::other)
}
