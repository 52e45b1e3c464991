//! Plots in SVG.

use std::error::Error;
use std::path::Path;

use flannel_benches::figures::Figure;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::table::distinct;

const SIZE: (u32, u32) = (760, 420);
const FONT: &str = "sans-serif";
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x7f, 0x7f, 0x7f),
];

/// The labels of a plot.
pub(crate) struct Labels<'a> {
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
}

/// Draws a line per series on a logarithmic axis; bars show the smallest and the largest. The horizontal axis is
/// logarithmic if it spans more than a power of ten, and starts at zero otherwise.
pub(crate) fn lines(file: &Path, labels: &Labels<'_>, figures: &[&Figure]) -> Result<(), Box<dyn Error>> {
    let points: Vec<Point<'_>> =
        figures.iter().filter_map(|figure| Some((figure.at.parse().ok()?, *figure))).collect();
    let ys = range(points.iter().flat_map(|(_, figure)| [figure.spread.least, figure.spread.most]));
    match ys {
        Some((least, most)) if most < 10.0 * least => lines_over(file, labels, &points, 0.0..most * 1.5),
        Some((least, most)) => lines_over(file, labels, &points, (least / 1.5..most * 1.5).log_scale()),
        None => Err("nothing to plot".into()),
    }
}

/// A value and its position.
type Point<'a> = (f64, &'a Figure);

fn lines_over<Y>(file: &Path, labels: &Labels<'_>, points: &[Point<'_>], ys: Y) -> Result<(), Box<dyn Error>>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let Some(xs) = range(points.iter().map(|(x, _)| *x)) else { return Err("nothing to plot".into()) };
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d((xs.0 / 1.15..xs.1 * 1.15).log_scale(), ys)?;
    let label = |value: &f64| short(*value);
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(5)
        .x_desc(labels.x)
        .y_desc(labels.y)
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 13))
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .draw()?;
    let names = distinct(points.iter().map(|(_, figure)| figure.series.as_str()));
    for (name, colour) in names.into_iter().zip(COLOURS.iter().cycle()) {
        let series: Vec<_> = points.iter().filter(|(_, figure)| figure.series == name).collect();
        let style = colour.stroke_width(2);
        let line = series.iter().map(|(x, figure)| (*x, figure.spread.median));
        chart
            .draw_series(LineSeries::new(line.clone(), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        chart.draw_series(line.map(|point| Circle::new(point, 3, colour.filled())))?;
        let spreads = series.iter().map(|(x, figure)| {
            let spread = figure.spread;
            PathElement::new([(*x, spread.least), (*x, spread.most)], colour.stroke_width(1))
        });
        chart.draw_series(spreads)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 14))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Draws a bar per series, from zero.
pub(crate) fn bars(file: &Path, labels: &Labels<'_>, figures: &[&Figure]) -> Result<(), Box<dyn Error>> {
    let most = figures.iter().map(|figure| figure.spread.most).fold(0.0, f64::max);
    if most <= 0.0 {
        return Err("nothing to plot".into());
    }
    let root = SVGBackend::new(file, (SIZE.0, 80 + 42 * figures.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let count = figures.len() as f64;
    let mut chart = ChartBuilder::on(&root)
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(190)
        .build_cartesian_2d(0.0..most * 1.08, 0.0..count)?;
    let name = |y: &f64| {
        let at = count - 0.5 - y;
        // A label is centred on its bar.
        figures
            .get(at.round() as usize)
            .filter(|_| (at - at.round()).abs() < 0.01)
            .map_or_else(String::new, |figure| figure.series.clone())
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(WHITE)
        .x_desc(labels.x)
        .y_labels(2 * figures.len() + 1)
        .y_label_formatter(&name)
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 13))
        .x_label_formatter(&|value| short(*value))
        .draw()?;
    for (position, (figure, colour)) in figures.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let y = count - 1.0 - position as f64;
        let spread = figure.spread;
        let bar = Rectangle::new([(0.0, y + 0.2), (spread.median, y + 0.8)], colour.mix(0.8).filled());
        chart.draw_series([bar])?;
        let range =
            PathElement::new([(spread.least, y + 0.5), (spread.most, y + 0.5)], BLACK.stroke_width(1));
        chart.draw_series([range])?;
    }
    root.present()?;
    Ok(())
}

/// Returns the smallest and the largest of the positive numbers.
fn range(numbers: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let positive: Vec<f64> = numbers.filter(|number| *number > 0.0).collect();
    let least = positive.iter().copied().reduce(f64::min)?;
    Some((least, positive.iter().copied().fold(least, f64::max)))
}

/// Formats a number for an axis.
fn short(value: f64) -> String {
    match value {
        1_000.0.. => format!("{},{:03}", value as u64 / 1_000, value as u64 % 1_000),
        10.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        0.0 => "0".to_owned(),
        _ => format!("{value:.2}"),
    }
}
