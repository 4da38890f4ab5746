//! `snapback doctor`: what the host offers, in plain words.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use snapback_vmm::probe::{Report, probe};

#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &DoctorArguments) -> anyhow::Result<ExitCode> {
    let report = probe();
    let mut out = std::io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        out.write_all(in_words(&report).as_bytes())?;
    }
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn in_words(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    for check in &report.checks {
        let verdict = match (check.ok, check.required) {
            (true, _) => "ok     ",
            (false, true) => "MISSING",
            (false, false) => "absent ",
        };
        line(&format!("{verdict}  {:<24} {}", check.name, check.detail));
        if !check.ok && !check.remedy.is_empty() {
            line(&format!("{:9}{:<24} -> {}", "", "", check.remedy));
        }
    }
    line("");
    line(if report.ok {
        "This host can run microVMs. What is absent only costs speed."
    } else {
        "This host cannot run microVMs: everything marked MISSING is needed."
    });
    text
}
