//! The same requests without resets: each in a machine that is restored for it and
//! destroyed afterwards.

use std::time::Instant;

use serde_json::json;

use super::ResetError;
use super::writer::{self, Work};
use crate::machine::Snapshot;
use crate::progress;
use crate::report::{Report, Samples, milliseconds};

/// Pages of a request.
const PAGES: [u32; 5] = [0, 50, 1000, 5000, 20_000];
const ROUNDS: u32 = 6;
const QUICK_ROUNDS: u32 = 2;

/// Adds the rows: `reset/destroy` is the end of one machine and all that it takes until
/// another one stands at the snapshot; `reset/destroy_waiting` is the part of it that
/// is left when the other one's process already waited; `reset/cycle` is a request and what
/// comes after it, with a reset and without.
pub fn measure(
    snapshot: &Snapshot<'_>,
    quick: bool,
    report: &mut Report,
) -> Result<(), ResetError> {
    let rounds = if quick { QUICK_ROUNDS } else { ROUNDS };
    for pages in PAGES {
        progress::step(&format!("{pages} pages, destroy and restore"));
        let params = || [("pages", json!(pages))];
        let (mut all, mut waiting) = (Samples::new("ms"), Samples::new("ms"));
        let (mut cycle, mut first_write) = (Samples::new("ms"), Samples::new("ns"));
        let mut machine = snapshot.restore(snapshot.blank()?)?;
        for _ in 0..rounds {
            let begin = Instant::now();
            let (_stream, wrote) = writer::run(&machine, Work::Pages(pages, 0))?;
            let answered = Instant::now();
            drop(machine);
            let destroyed = Instant::now();
            let blank = snapshot.blank()?;
            let prepared = Instant::now();
            machine = snapshot.restore(blank)?;
            let end = Instant::now();
            all.push(milliseconds(end - answered));
            waiting.push(milliseconds((destroyed - answered) + (end - prepared)));
            cycle.push(milliseconds(end - begin));
            if pages > 0 {
                first_write.push(wrote.as_secs_f64() * 1e9 / f64::from(pages));
            }
        }
        report.add(all.row("reset/destroy", params()));
        report.add(waiting.row("reset/destroy_waiting", params()));
        let with = |how: &str| [("pages", json!(pages)), ("after", json!(how))];
        report.add(cycle.row("reset/cycle", with("destroy")));
        let after = [("pages", json!(pages)), ("policy", json!("restored"))];
        report.add(first_write.row("reset/first_write", after));

        // Warm, as the machine of many requests is.
        let mut cycle = Samples::new("ms");
        for nth in 0..rounds + 3 {
            let begin = Instant::now();
            writer::request(&machine, Work::Pages(pages, 0))?;
            if nth >= 3 {
                cycle.push(milliseconds(begin.elapsed()));
            }
        }
        report.add(cycle.row("reset/cycle", with("reset")));
    }
    Ok(())
}
