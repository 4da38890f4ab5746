//! Paths within a package.

use super::refused::{PathFault, UnpackError, readable};

/// Longest path, in bytes.
pub const MAX_PATH: usize = 1024;
/// Longest name in a path, in bytes: the file systems' own limit.
pub const MAX_NAME: usize = 255;
/// Most names in a path.
pub const MAX_DEPTH: usize = 64;

/// A name of a file or folder: neither empty nor `.` nor `..`, without `/` and zero bytes.
pub type Name = Vec<u8>;

/// The names of a path from an archive; none for the top level itself.
///
/// # Errors
/// When the path could leave the package, or cannot be a file's.
pub fn parse(path: &[u8]) -> Result<Vec<Name>, UnpackError> {
    let refused = |fault| {
        let path = readable(path);
        Err(UnpackError::Path { path, fault })
    };
    if path.contains(&0) {
        return refused(PathFault::NotAName);
    }
    if path.first() == Some(&b'/') {
        return refused(PathFault::Absolute);
    }
    if path.len() > MAX_PATH {
        return refused(PathFault::TooLong);
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return refused(PathFault::Upwards),
            name if name.len() > MAX_NAME => return refused(PathFault::TooLong),
            name => names.push(name.to_vec()),
        }
    }
    if names.len() > MAX_DEPTH {
        return refused(PathFault::TooDeep);
    }
    Ok(names)
}

/// Checks where a symbolic link leads. Anywhere is fine: it is only ever followed in the guest.
///
/// # Errors
/// When it cannot be a path at all.
pub fn check_target(path: &[Name], target: &[u8]) -> Result<(), UnpackError> {
    if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
        return Err(UnpackError::Path {
            path: readable(&path.join(&b'/')),
            fault: PathFault::Target,
        });
    }
    Ok(())
}
