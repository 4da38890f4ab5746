//! What test programs share: agents in places of their own, and how to speak to them.

pub mod agent;
pub mod cli;
pub mod http;
pub mod place;
pub mod processes;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Nothing here takes longer, even where a machine is emulated on a busy host.
pub const LIMIT: Duration = Duration::from_secs(180);

/// The folder with the code of the function that does what its event says.
pub fn tour_code() -> PathBuf {
    code("tour")
}

/// The folder with the code of a function that tests run.
pub fn code(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("functions")
        .join(name)
}

/// A file or folder that the one who runs the tests names.
pub fn given(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set: run `cargo xtask test`"))
        .into()
}

/// Waits, bounded, until there is something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "{what} did not come in {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
