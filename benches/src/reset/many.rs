//! Many requests of one machine: its process does not grow, its guest does not complain,
//! and it equals its snapshot all the time.

use std::fs;

use serde_json::json;

use super::ResetError;
use super::writer::{self, Work};
use crate::machine::{Machine, prepare};
use crate::progress;
use crate::report::{Report, Samples, whole};

/// Requests.
const REQUESTS: u32 = 10_000;
const QUICK_REQUESTS: u32 = 500;
/// Requests after which nothing is new to the process.
const SETTLED: u32 = 200;
/// Requests between two looks at the process.
const LOOK: u32 = 100;
/// Requests between two comparisons.
const COMPARE: u32 = 500;
/// Choices of pages, one after the other: all were written when the process has settled.
const CHOICES: u32 = 50;
/// How much the process may grow by, in KiB: a page of the guest that no request before had
/// written stays the machine's own, and a kernel finds such pages now and then.
const GROWTH_KIB: u64 = 1024;
/// What a guest's kernel says when time or a processor is not what it should be.
const COMPLAINTS: [&str; 8] = [
    "soft lockup",
    "rcu:",
    "stall",
    "watchdog",
    "clocksource",
    "hung",
    "unstable",
    "Call Trace",
];

/// What one process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Use {
    memory_kib: u64,
    peak_kib: u64,
    descriptors: u64,
}

/// Adds the rows and checks.
pub fn measure(machine: &Machine, quick: bool, report: &mut Report) -> Result<(), ResetError> {
    let requests = if quick { QUICK_REQUESTS } else { REQUESTS };
    progress::step(&format!("{requests} requests of one machine"));
    let said_before = machine.console().text().len();
    let (mut memory, mut descriptors) = (Samples::new("KiB"), Samples::new("descriptors"));
    let mut settled = None;
    let (mut differences, mut compared) = (Vec::new(), 0);
    for nth in 1..=requests {
        writer::live(machine, work(nth))?;
        // A comparison maps all of the snapshot, which is no growth: one before the first look.
        if nth % COMPARE == 0 || nth == SETTLED {
            compared += 1;
            differences.extend(machine.differences()?);
        }
        if nth % LOOK == 0 {
            let now = look(machine.pid())?;
            memory.push(whole(now.memory_kib));
            descriptors.push(whole(now.descriptors));
            if nth >= SETTLED {
                settled.get_or_insert(now);
            }
        }
    }
    let last = look(machine.pid())?;
    let params = || [("requests", json!(requests))];
    report.add(memory.row("reset/memory", params()));
    let mut peak = Samples::new("KiB");
    peak.push(whole(last.peak_kib));
    report.add(peak.row("reset/peak_memory", params()));
    report.add(descriptors.row("reset/descriptors", params()));
    let settled = settled.unwrap_or(last);
    let flat = last.memory_kib <= settled.memory_kib + GROWTH_KIB
        && last.descriptors == settled.descriptors;
    let detail = format!(
        "after {SETTLED} requests {settled:?}, after {requests} {last:?}; no more than \
         {GROWTH_KIB} KiB and no descriptor may come"
    );
    report.check("reset/no_growth", flat, detail);
    let detail = format!(
        "{compared} of {requests} compared: {}",
        differences.join("; ")
    );
    report.check("reset/equal_many", differences.is_empty(), detail);
    complaints(machine, said_before, requests, report);
    Ok(())
}

/// A few pages, always others; now and then disk and network.
fn work(nth: u32) -> Work {
    match nth % 10 {
        0 => Work::Devices,
        _ => Work::Pages(20, nth % CHOICES),
    }
}

/// What the guest's kernel wrote to its console in all of its lives.
fn complaints(machine: &Machine, from: usize, requests: u32, report: &mut Report) {
    let said = machine.console().text();
    let said = said.get(from..).unwrap_or_default();
    let complaint = said
        .lines()
        .find(|line| COMPLAINTS.iter().any(|word| line.contains(word)));
    let detail = match complaint {
        Some(line) => line.to_owned(),
        None => format!("{} bytes on the console in {requests} lives", said.len()),
    };
    report.check("reset/no_complaint", complaint.is_none(), detail);
}

fn look(pid: u32) -> Result<Use, ResetError> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(prepare(format!("read {path}")))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        number.unwrap_or(0)
    };
    let folder = format!("/proc/{pid}/fd");
    let open = fs::read_dir(&folder).map_err(prepare(format!("read {folder}")))?;
    Ok(Use {
        memory_kib: field("VmRSS"),
        peak_kib: field("VmHWM"),
        descriptors: u64::try_from(open.count()).unwrap_or(u64::MAX),
    })
}
