//! Reports for people: text tables.

use std::fmt::Write as _;

use super::{Clock, Report, Row};

/// Widest cell, in characters; longer text is cut.
const MAX_CELL: usize = 110;

/// A text table. The first column is aligned to the left, the others to the right.
#[derive(Debug, Clone, Default)]
pub struct Table {
    lines: Vec<Vec<String>>,
}

impl Table {
    /// A table with this header.
    #[must_use]
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        let header = header.map(str::to_owned).to_vec();
        Self {
            lines: vec![header],
        }
    }

    /// Adds a line.
    pub fn line(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| cut(&cell)).collect();
        self.lines.push(cells);
    }

    /// The table as text, each line with an end.
    #[must_use]
    pub fn text(&self) -> String {
        let mut widths = Vec::new();
        for line in &self.lines {
            for (column, cell) in line.iter().enumerate() {
                let width = cell.chars().count();
                match widths.get_mut(column) {
                    Some(widest) => *widest = width.max(*widest),
                    None => widths.push(width),
                }
            }
        }
        let mut text = String::new();
        for (number, line) in self.lines.iter().enumerate() {
            let padded = line.iter().zip(&widths).enumerate();
            let cells = padded.map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            let joined: Vec<String> = cells.collect();
            push_line(&mut text, joined.join("  ").trim_end());
            if number == 0 {
                let rules: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
                push_line(&mut text, &rules.join("  "));
            }
        }
        text
    }
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn cut(cell: &str) -> String {
    if cell.chars().count() <= MAX_CELL {
        return cell.to_owned();
    }
    let mut short: String = cell.chars().take(MAX_CELL - 1).collect();
    short.push('…');
    short
}

/// A number with as many decimals as are worth reading.
#[must_use]
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

impl Report {
    /// The report as text: rows, floor, peers, checks. Rows of `hidden` names are
    /// left out.
    #[must_use]
    pub fn text(&self, hidden: &[&str]) -> String {
        let mut table = Table::new(["measured", "unit", "p50", "p99", "n"]);
        let shown = |row: &&Row| !hidden.contains(&row.name.as_str());
        for row in self.rows.iter().filter(shown) {
            table.line(cells(&row.name, row));
        }
        for row in &self.floor {
            table.line(cells(&format!("floor: {}", row.name), row));
        }
        for peer in &self.peers {
            for row in &peer.rows {
                table.line(cells(&format!("{}: {}", peer.peer, row.name), row));
            }
        }
        let mut text = table.text();
        text.push('\n');
        for check in &self.checks {
            let mark = if check.ok { "ok    " } else { "FAILED" };
            push_line(
                &mut text,
                &format!("{mark} {}: {}", check.name, check.detail),
            );
        }
        push_line(&mut text, &self.origin());
        text
    }

    fn origin(&self) -> String {
        let clock = match self.clock {
            Clock::Virtual => "virtual time (one instruction is one nanosecond)",
            Clock::Wall => "wall clock",
        };
        let place = if self.host.in_box {
            "in the box: an emulated host, no figures of real hardware"
        } else {
            "on this host"
        };
        let (revision, kernel, cpu) = (&self.revision, &self.host.kernel, &self.host.cpu);
        let cpus = self.host.cpus;
        format!("revision {revision}, {clock}, {place} (Linux {kernel}, {cpus} x {cpu})")
    }
}

fn cells(name: &str, row: &Row) -> [String; 5] {
    let mut name = name.to_owned();
    for (param, value) in &row.params {
        // Writing to a string cannot fail.
        let _ = write!(name, " {param}={value}");
    }
    [
        name,
        row.unit.clone(),
        number(row.p50),
        number(row.p99),
        row.n.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["name", "ms"]);
        table.line(["é".to_owned(), "1".to_owned()]);
        table.line(["longer".to_owned(), "1000".to_owned()]);
        assert_eq!(
            table.text(),
            "name      ms\n──────  ────\né          1\nlonger  1000\n"
        );
    }

    #[test]
    fn numbers_are_short() {
        let pairs = [
            (0.0, "0"),
            (512.0, "512"),
            (1234.5, "1234"),
            (45.67, "45.7"),
            (1.234, "1.23"),
            (0.12345, "0.1235"),
            (-3.25, "-3.25"),
        ];
        for (value, text) in pairs {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_report_shows_rows_and_failures() {
        let mut report = report();
        report.check("reset/equal", false, "page 7 differs");
        let text = report.text(&[]);
        assert!(text.contains("reset/pages pages=50"), "{text}");
        assert!(
            text.contains("FAILED reset/equal: page 7 differs"),
            "{text}"
        );
        assert!(text.contains("virtual time"), "{text}");
        assert!(!report.text(&["reset/pages"]).contains("pages=50"));
    }

    #[test]
    fn long_cells_are_cut() {
        let mut table = Table::new(["name"]);
        table.line(["x".repeat(100)]);
        assert!(
            table
                .text()
                .lines()
                .all(|line| line.chars().count() <= MAX_CELL)
        );
    }
}
