//! Reports as a picture: the medians of all durations as bars on a logarithmic scale,
//! beside the floor and the peers.

use std::path::{Path, PathBuf};

use plotters::prelude::*;

use super::table::number;
use super::{Report, Row};

/// Size of a bar with its margin, in pixels.
const BAR: u32 = 22;
/// Width of the picture and of the part that has the names, in pixels.
const WIDTH: u32 = 1200;
const NAMES: u32 = 560;
/// Room above and below the bars, in pixels.
const MARGIN: u32 = 60;

/// A picture could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be drawn: {reason}", path.display())]
pub struct PlotError {
    path: PathBuf,
    reason: Box<dyn std::error::Error + Send + Sync>,
}

/// One bar.
struct Bar {
    label: String,
    milliseconds: f64,
    colour: RGBColor,
}

const OURS: RGBColor = RGBColor(31, 119, 180);
const FLOOR: RGBColor = RGBColor(150, 150, 150);
const PEERS: RGBColor = RGBColor(214, 96, 39);

impl Report {
    /// Draws every duration's median into an SVG file. Other rows are left out.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn plot(&self, path: &Path) -> Result<(), PlotError> {
        let bars = self.bars();
        draw(&self.report, &bars, path).map_err(|error| PlotError {
            path: path.to_owned(),
            reason: error.to_string().into(),
        })
    }

    fn bars(&self) -> Vec<Bar> {
        let ours = self.rows.iter().map(|row| (String::new(), row, OURS));
        let floor = self.floor.iter().map(|row| (String::new(), row, FLOOR));
        let peers = self.peers.iter().flat_map(|peer| {
            let rows = peer.rows.iter();
            rows.map(|row| (format!("{}: ", peer.peer), row, PEERS))
        });
        ours.chain(floor)
            .chain(peers)
            .filter_map(|(prefix, row, colour)| {
                Some(Bar {
                    label: format!("{prefix}{}", label(row)),
                    milliseconds: milliseconds(row).filter(|ms| *ms > 0.0)?,
                    colour,
                })
            })
            .collect()
    }
}

fn milliseconds(row: &Row) -> Option<f64> {
    match row.unit.as_str() {
        "ms" => Some(row.p50),
        "ns" => Some(row.p50 / 1e6),
        _ => None,
    }
}

fn label(row: &Row) -> String {
    let values: Vec<String> = row
        .params
        .iter()
        .map(|(name, value)| match value {
            serde_json::Value::String(text) => text.clone(),
            other => format!("{name} {other}"),
        })
        .collect();
    format!("{} {}", row.name, values.join(", "))
}

/// A duration as it stands beside its bar: in milliseconds unless nothing would be left of it.
fn value(milliseconds: f64) -> String {
    if milliseconds < 0.001 {
        return format!("{} ns", number(milliseconds * 1e6));
    }
    number(milliseconds)
}

fn draw(title: &str, bars: &[Bar], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let count = u32::try_from(bars.len())?;
    let area = SVGBackend::new(path, (WIDTH, count * BAR + 2 * MARGIN)).into_drawing_area();
    area.fill(&WHITE)?;
    let values = || bars.iter().map(|bar| bar.milliseconds);
    let least = values().fold(f64::INFINITY, f64::min).min(1.0) / 2.0;
    let most = values().fold(0.0, f64::max).max(1.0) * 3.0;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{title}: medians, ms"), ("sans-serif", 18))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(NAMES)
        .build_cartesian_2d((least..most).log_scale(), 0_f64..f64::from(count))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .draw()?;
    for (row, bar) in (0_u32..).zip(bars) {
        let top = f64::from(count - row);
        let from = (least, top - 0.85);
        let to = (bar.milliseconds, top - 0.15);
        chart.draw_series([Rectangle::new([from, to], bar.colour.filled())])?;
        let style = ("sans-serif", 11).into_font().color(&BLACK);
        let (right, middle) = chart.backend_coord(&(bar.milliseconds, top - 0.3));
        let value = value(bar.milliseconds);
        area.draw(&Text::new(value, (right + 4, middle), style.clone()))?;
        area.draw(&Text::new(bar.label.clone(), (8, middle), style))?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;

    #[test]
    fn a_short_duration_is_not_shown_as_none() {
        assert_eq!(super::value(0.25), "0.2500");
        assert_eq!(super::value(0.000_020_4), "20.4 ns");
    }

    #[test]
    fn every_duration_has_a_bar_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        report().plot(&path).unwrap();
        let drawn = std::fs::read_to_string(&path).unwrap();
        assert!(drawn.contains("reset/pages pages 50"), "{drawn}");
        assert!(drawn.contains("0.2500"), "{drawn}");
    }
}
