//! What can go wrong.

use std::io;

/// The floor could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    /// A step with the kernel failed.
    #[error("the floor cannot be measured: {step} failed")]
    Step {
        /// Which one.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The guest did something else.
    #[error("the floor cannot be measured: the test guest left with {exit}")]
    Guest {
        /// What it did.
        exit: String,
    },
}

pub(super) fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> FloorError {
    move |source| FloorError::Step {
        step,
        source: source.into(),
    }
}
