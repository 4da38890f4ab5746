//! A step with the kernel that failed, by name: the part that every operation's
//! error has in common.

use std::io;

/// A step with the kernel failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct StepError {
    /// Which one, as in "cannot …".
    pub step: &'static str,
    /// What the kernel says.
    #[source]
    pub source: io::Error,
}

/// For `map_err`: the error of `step`.
pub fn kernel<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> StepError {
    move |source| StepError {
        step,
        source: source.into(),
    }
}
