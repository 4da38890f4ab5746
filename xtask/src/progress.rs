//! Says on stderr what is being done and how long it took: a moving spinner on a
//! terminal, one plain line at the start and one at the end everywhere else.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One step of preparation, from its start until [`Step::done`].
///
/// A step that is dropped without `done` leaves no success line behind: the error
/// that stopped it is printed by the caller.
pub struct Step {
    what: String,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Announces a step whose length is unknown.
    pub fn start(what: impl Into<String>) -> Self {
        Self::new(what.into(), None)
    }

    /// Announces a step of about `total` units; shown as a bar.
    pub fn start_counted(what: impl Into<String>, total: u64) -> Self {
        Self::new(what.into(), Some(total))
    }

    fn new(what: String, total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            let template = match total {
                Some(_) => "{spinner} {prefix} [{bar:30}] {pos}/{len} {msg} ({elapsed})",
                None => "{spinner} {prefix} {msg} ({elapsed})",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("  .. {what}");
        }
        Self {
            what,
            started: Instant::now(),
            bar,
        }
    }

    /// Advances a counted step by one unit and shows what that unit was.
    pub fn advance(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            // The total is an estimate: never show more than all of it.
            if bar.length().is_some_and(|length| bar.position() < length) {
                bar.inc(1);
            }
            bar.set_message(detail.chars().take(40).collect::<String>());
        }
    }

    /// Ends the step well.
    pub fn done(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("  ok {} ({:.1?})", self.what, self.started.elapsed());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
