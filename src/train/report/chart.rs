//! Line charts as inline SVG. Legends and titles are HTML, beside the picture: text is laid out by
//! the browser, which knows its fonts, and not by guesses made here.

use plotters::prelude::*;
use plotters::series::DashedLineSeries;

use super::Error;
use super::axis::Axis;

/// Twice what is shown: coordinates are whole numbers, and curves shall not look like stairs.
const WIDTH: u32 = 1120;
const HEIGHT: u32 = 600;
/// More points than a picture of this width can show.
const MOST_POINTS: usize = 700;
const TEXT_SIZE: u32 = 32;

const GRID: RGBColor = RGBColor(0xE4, 0xE7, 0xEB);
const AXIS: RGBColor = RGBColor(0xA9, 0xB1, 0xBA);
const TEXT: RGBColor = RGBColor(0x5B, 0x65, 0x70);

/// The colours of series; the style sheet gives each a second value for dark pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    /// What the picture is about.
    First,
    /// What it is compared with.
    Second,
    /// A baseline.
    Quiet,
}

impl Ink {
    fn colour(self) -> RGBColor {
        match self {
            Ink::First => RGBColor(0x1F, 0x6F, 0xD6),
            Ink::Second => RGBColor(0xD5, 0x5E, 0x12),
            Ink::Quiet => RGBColor(0x8A, 0x93, 0x9E),
        }
    }

    /// Name of its class in the style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Ink::First => "first",
            Ink::Second => "second",
            Ink::Quiet => "quiet",
        }
    }
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroke {
    /// A line.
    Line,
    /// A line over a tinted area.
    Area,
    /// A thin, pale line: values before smoothing.
    Faint,
    /// A dashed line.
    Dashed,
    /// A line with a dot at each point: few points.
    Dots,
}

/// One series of a chart.
#[derive(Debug, Clone)]
pub struct Series {
    /// What the legend calls it; empty = not in the legend.
    pub name: String,
    /// (x, y); what is not finite is passed over.
    pub points: Vec<(f64, f64)>,
    /// Its colour.
    pub ink: Ink,
    /// How it is drawn.
    pub stroke: Stroke,
}

/// How values are laid along the y axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From the least to the greatest value, with some air.
    Fit,
    /// From zero.
    FromZero,
    /// As logarithms; what is not positive is passed over.
    Log,
    /// From zero to one: rates and probabilities.
    Unit,
}

/// A line chart.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Heading.
    pub title: String,
    /// What x is, with its unit.
    pub x_label: String,
    /// What y is, with its unit.
    pub y_label: String,
    /// How y is laid out; with [`Scale::Unit`], x runs from 0 to 1 too.
    pub scale: Scale,
    /// Drawn in this order, the last on top.
    pub series: Vec<Series>,
}

impl Chart {
    /// Whether there is anything to draw: a series of at least two points.
    pub fn has_points(&self) -> bool {
        self.series.iter().any(|s| self.placed(&s.points).len() >= 2)
    }

    /// The picture as an `<svg>` element.
    ///
    /// # Errors
    /// What the drawing library reports.
    pub fn svg(&self) -> Result<String, Error> {
        let mut out = String::new();
        self.draw(&mut out).map_err(|e| Error::Drawing { chart: self.title.clone(), why: e.to_string() })?;
        // Scales with the column; the size stands in the viewBox.
        let fixed = format!("<svg width=\"{WIDTH}\" height=\"{HEIGHT}\"");
        Ok(out.replacen(&fixed, "<svg role=\"img\"", 1))
    }

    fn draw(&self, out: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let drawn: Vec<Vec<(f64, f64)>> = self.series.iter().map(|s| self.placed(&s.points)).collect();
        let (x, y) = self.ranges(&drawn);
        let x = Axis::linear(x);
        let y = if self.scale == Scale::Log { Axis::log(y) } else { Axis::linear(y) };
        let (floor, x_ticks, y_ticks) = (y.start(), x.ticks(), y.ticks());
        let root = SVGBackend::with_string(out, (WIDTH, HEIGHT)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin_top(20)
            .margin_right(36)
            .x_label_area_size(96)
            .y_label_area_size(136)
            .build_cartesian_2d(x, y)?;
        let text = ("sans-serif", TEXT_SIZE).into_font().color(&TEXT);
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(2))
            .axis_style(AXIS.stroke_width(2))
            .set_all_tick_mark_size(8)
            .label_style(text.clone())
            .axis_desc_style(text)
            .x_labels(x_ticks)
            .y_labels(y_ticks)
            .x_desc(self.x_label.as_str())
            .y_desc(self.y_label.as_str())
            .draw()?;
        for (series, points) in self.series.iter().zip(drawn) {
            let points = thin(points);
            let colour = series.ink.colour();
            match series.stroke {
                Stroke::Line => chart.draw_series(LineSeries::new(points, colour.stroke_width(4)))?,
                Stroke::Faint => chart.draw_series(LineSeries::new(points, colour.mix(0.35).stroke_width(2)))?,
                Stroke::Dashed => chart.draw_series(DashedLineSeries::new(points, 12, 10, colour.stroke_width(4)))?,
                Stroke::Area => {
                    chart.draw_series(AreaSeries::new(points.iter().copied(), floor, colour.mix(0.14)))?;
                    chart.draw_series(LineSeries::new(points, colour.stroke_width(4)))?
                }
                Stroke::Dots => {
                    chart.draw_series(points.iter().map(|&p| Circle::new(p, 6, colour.filled())))?;
                    chart.draw_series(LineSeries::new(points, colour.stroke_width(4)))?
                }
            };
        }
        root.present()?;
        Ok(())
    }

    /// The finite points, where they are drawn.
    fn placed(&self, points: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let place = |(x, y): (f64, f64)| if self.scale == Scale::Log { (x, y.log10()) } else { (x, y) };
        finite(&points.iter().copied().map(place).collect::<Vec<_>>()).collect()
    }

    /// (from, to) of x and of y; neither is ever empty.
    fn ranges(&self, drawn: &[Vec<(f64, f64)>]) -> ((f64, f64), (f64, f64)) {
        if self.scale == Scale::Unit {
            return ((0.0, 1.0), (0.0, 1.0));
        }
        let all = || drawn.iter().flatten();
        let x = extent(all().map(|p| p.0));
        let (low, high) = extent(all().map(|p| p.1));
        let air = (high - low) * 0.05;
        let y = if self.scale == Scale::FromZero { (low.min(0.0), high + air) } else { (low - air, high + air) };
        (widened(x), widened(y))
    }
}

fn finite(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> {
    points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite())
}

fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// A range of no length is opened: one value alone still gets an axis.
fn widened((low, high): (f64, f64)) -> (f64, f64) {
    if high - low > high.abs() * 1e-9 {
        (low, high)
    } else {
        (low - low.abs().max(1e-9) * 0.5, high + high.abs().max(1e-9) * 0.5)
    }
}

/// At most [`MOST_POINTS`] points: the least and the greatest of each stretch stay, in their order.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= MOST_POINTS {
        return points;
    }
    let stretch = (2 * points.len()).div_ceil(MOST_POINTS);
    let ends = [points.first().copied(), points.last().copied()];
    let mut kept: Vec<_> = points
        .chunks(stretch)
        .flat_map(|c| {
            let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
            [c.iter().min_by(by_y).copied(), c.iter().max_by(by_y).copied()].into_iter().flatten()
        })
        .chain(ends.into_iter().flatten())
        .collect();
    kept.sort_by(|a, b| a.0.total_cmp(&b.0));
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let series = Series { name: "loss".into(), points, ink: Ink::First, stroke: Stroke::Area };
        Chart {
            title: "Loss".into(),
            x_label: "step".into(),
            y_label: "nats <per> token".into(),
            scale: Scale::Fit,
            series: vec![series],
        }
    }

    #[test]
    fn draws_whatever_the_values_are() {
        let hard = [
            vec![],
            vec![(0.0, 0.0)],
            vec![(5.0, 3.0), (5.0, 3.0)],
            vec![(0.0, f64::NAN), (1.0, f64::INFINITY), (2.0, 1.0)],
            vec![(0.0, 1e-12), (1e12, 1e30)],
            (0..100_000).map(|i| (f64::from(i), (f64::from(i) * 0.01).sin())).collect(),
        ];
        for points in hard {
            for scale in [Scale::Fit, Scale::FromZero, Scale::Log, Scale::Unit] {
                let svg = Chart { scale, ..chart(points.clone()) }.svg().unwrap();
                assert!(svg.starts_with("<svg role=\"img\"") && svg.trim_end().ends_with("</svg>"));
                assert!(!svg.contains("NaN") && !svg.contains("<per>"));
                assert!(svg.len() < 60_000, "{} bytes", svg.len());
            }
        }
    }

    #[test]
    fn thinning_keeps_peaks_and_ends() {
        let mut points: Vec<_> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[5_432].1 = 9.0;
        let kept = thin(points);
        assert!(kept.len() <= MOST_POINTS + 2);
        assert!(kept.contains(&(5_432.0, 9.0)));
        assert_eq!((kept[0].0, kept[kept.len() - 1].0), (0.0, 9_999.0));
    }
}
