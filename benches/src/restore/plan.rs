//! Which combinations are measured, and the agent's configuration for each.

use std::fmt;

use serde_json::{Value, json};

/// Requests before the first sample: one that loads the snapshot and is recorded, two
/// whose writes are learned, one more that finds what those left.
pub const WARM_UP: usize = 4;

/// Blank microVMs started per second at most: the next one is not being started while a
/// request runs that has just taken one.
const PER_SECOND: u32 = 10;

/// For microVMs that serve on and are restored from a snapshot of which nothing is known.
pub const UNKNOWN: &str = "[pools]\nblank = 0\n[pager]\nworking_sets = false\n";

/// For microVMs that serve on, each until it is idle for [`IDLE_MS`].
pub const FOOTPRINT: &str = "[pools]\nblank = 0\n[timeouts]\nidle_ms = 3000\n";

/// Longer than a microVM of [`FOOTPRINT`] lives without a request, in milliseconds.
pub const IDLE_MS: u64 = 5000;

/// Whether the snapshot's pages are in the agent's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Those that earlier requests needed.
    Warm,
    /// None: the agent has just started.
    Cold,
}

/// `[pager] fill`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Between faults.
    Background,
    /// Before the first restore.
    Eager,
}

impl Fill {
    const fn word(self) -> &'static str {
        match self {
            Self::Background => "background",
            Self::Eager => "eager",
        }
    }
}

/// One combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Requests at the same time.
    pub concurrency: usize,
    /// Rounds of so many requests.
    pub rounds: usize,
    /// The snapshot's pages.
    pub cache: Cache,
    /// Whether working sets are recorded and prefetched, and what runs write is made a
    /// microVM's own ahead.
    pub prefetch: bool,
    /// When the rest of a snapshot's memory is brought: in the background, or all of it
    /// before the first restore.
    pub fill: Fill,
    /// Whether blank microVMs wait, one for each request of a round.
    pub blank_pool: bool,
    /// Tells two series of the same combination apart.
    pub repeat: usize,
}

/// The agent that the functions are created with, and that learns from their first runs.
pub const FIRST: Setting = Setting {
    concurrency: 1,
    rounds: 0,
    cache: Cache::Warm,
    prefetch: true,
    fill: Fill::Background,
    blank_pool: true,
    repeat: 0,
};

impl Setting {
    /// How many blank microVMs wait before a round.
    pub const fn blanks(&self) -> usize {
        if self.blank_pool { self.concurrency } else { 0 }
    }

    /// The agent's configuration.
    pub fn toml(&self) -> String {
        let (blanks, working_sets, fill) = (self.blanks(), self.prefetch, self.fill.word());
        format!(
            "[reset]\nin_place = false\n\
             [pools]\nblank = {blanks}\nblank_starting = 1\nblank_per_second = {PER_SECOND}\n\
             [pager]\nworking_sets = {working_sets}\nfill = \"{fill}\"\n\
             [limits]\nmax_environments = 256\nmax_concurrent_requests = 256\n"
        )
    }

    /// The conditions of its rows.
    pub fn params<'a>(&self, runtime: &str) -> [(&'a str, Value); 7] {
        let cache = match self.cache {
            Cache::Warm => "warm",
            Cache::Cold => "cold",
        };
        [
            ("runtime", json!(runtime)),
            ("concurrency", json!(self.concurrency)),
            ("cache", json!(cache)),
            ("prefetch", json!(self.prefetch)),
            ("fill", json!(self.fill.word())),
            ("blank_pool", json!(self.blank_pool)),
            ("repeat", json!(self.repeat)),
        ]
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |on| if on { "on" } else { "off" };
        write!(
            f,
            "{:?} cache, prefetch {}, {} fill, blank pool {}, {} at once, {} rounds",
            self.cache,
            on(self.prefetch),
            self.fill.word(),
            on(self.blank_pool),
            self.concurrency,
            self.rounds
        )
    }
}

/// Every combination, in the order of the report.
pub fn settings(quick: bool) -> Vec<Setting> {
    let warm = Setting {
        concurrency: 1,
        rounds: if quick { 5 } else { 30 },
        cache: Cache::Warm,
        prefetch: true,
        fill: Fill::Background,
        blank_pool: true,
        repeat: 1,
    };
    let cold = Setting {
        cache: Cache::Cold,
        rounds: if quick { 2 } else { 6 },
        ..warm
    };
    let mut settings = vec![
        warm,
        Setting { repeat: 2, ..warm },
        Setting {
            blank_pool: false,
            rounds: if quick { 2 } else { 10 },
            ..warm
        },
        Setting {
            prefetch: false,
            rounds: if quick { 2 } else { 10 },
            ..warm
        },
        cold,
        Setting {
            prefetch: false,
            ..cold
        },
        Setting {
            prefetch: false,
            fill: Fill::Eager,
            ..cold
        },
    ];
    if !quick {
        settings.push(Setting {
            concurrency: 10,
            rounds: 3,
            ..warm
        });
        settings.push(Setting {
            concurrency: 50,
            rounds: 2,
            ..warm
        });
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_measured_once() {
        let settings = settings(false);
        for (index, setting) in settings.iter().enumerate() {
            assert!(!settings[..index].contains(setting), "{setting}");
        }
    }

    #[test]
    fn a_round_of_fifty_finds_fifty_blank_machines() {
        let fifty = settings(false);
        let fifty = fifty.iter().find(|s| s.concurrency == 50).unwrap();
        assert!(fifty.toml().contains("blank = 50\n"));
        assert_eq!(fifty.blanks(), 50);
    }
}
