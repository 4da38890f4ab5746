//! What a person sees while a measurement runs.

/// Something begins.
pub fn step(what: &str) {
    eprintln!("  .. {what}");
}

/// The end of the agent's log.
pub fn log(tail: &str) {
    eprintln!("\nThe last lines of the agent's log:");
    for line in tail.lines() {
        eprintln!("  | {line}");
    }
}
