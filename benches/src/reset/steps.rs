//! What resets took, step by step.

use std::time::Duration;

use serde_json::Value;
use snapback_proto::control::ResetReport;

use crate::report::{Report, Samples, milliseconds, whole};

type Field = fn(&ResetReport) -> u64;

const TIMES: [(&str, Field); 9] = [
    ("reset/pages", |r| r.total_ns),
    ("reset/pause", |r| r.pause_ns),
    ("reset/state", |r| r.state_ns),
    ("reset/state_host", |r| r.host_ns),
    ("reset/state_devices", |r| r.devices_ns),
    ("reset/state_interrupts", |r| r.interrupts_ns),
    ("reset/state_processors", |r| r.processors_ns),
    ("reset/collect", |r| r.collect_ns),
    ("reset/copy", |r| r.pages_ns.saturating_sub(r.collect_ns)),
];
const COUNTS: [(&str, Field); 2] = [
    ("reset/dirty_pages", |r| r.pages),
    ("reset/hot_pages", |r| r.hot_pages),
];

/// Adds a row for each step, and for the pages.
pub fn rows(report: &mut Report, params: &[(&str, Value)], resets: &[ResetReport]) {
    let mut add = |unit, name, value: &dyn Fn(&ResetReport) -> f64| {
        let mut samples = Samples::new(unit);
        for reset in resets {
            samples.push(value(reset));
        }
        report.add(samples.row(name, params.iter().cloned()));
    };
    for (name, field) in TIMES {
        add("ms", name, &|reset| {
            milliseconds(Duration::from_nanos(field(reset)))
        });
    }
    for (name, field) in COUNTS {
        add("pages", name, &|reset| whole(field(reset)));
    }
}
