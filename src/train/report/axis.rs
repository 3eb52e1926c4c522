//! An axis: where values lie on it, and its ticks at round numbers.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// A linear axis in places; on a logarithmic one, a place is the decimal logarithm of its value.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    places: Range<f64>,
    ticks: Ticks,
}

impl Axis {
    /// Over these values.
    pub(super) fn linear(range: (f64, f64)) -> Self {
        Axis { places: range.0..range.1, ticks: Ticks::linear(range) }
    }

    /// Over values with these decimal logarithms.
    pub(super) fn log(range: (f64, f64)) -> Self {
        Axis { places: range.0..range.1, ticks: Ticks::log(range) }
    }

    /// Number of ticks.
    pub(super) fn ticks(&self) -> usize {
        self.ticks.places.len()
    }

    /// The first place.
    pub(super) fn start(&self) -> f64 {
        self.places.start
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, pixels: (i32, i32)) -> i32 {
        // A point far outside would overflow pixels; a plot's length beyond the edge is out of sight.
        let share = ((place - self.places.start) / (self.places.end - self.places.start)).clamp(-1.0, 2.0);
        pixels.0 + (f64::from(pixels.1 - pixels.0) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Light lines between the ticks are not drawn.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.places.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.places.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, place: &f64) -> String {
        self.ticks.label(*place)
    }
}

/// Where an axis has ticks and what they are called.
#[derive(Debug, Clone)]
struct Ticks {
    places: Vec<f64>,
    /// Value of a place.
    value: fn(f64) -> f64,
    decimals: usize,
    unit: f64,
    suffix: &'static str,
}

impl Ticks {
    /// At multiples of 1, 2 or 5 times a power of ten, about six of them.
    fn linear((low, high): (f64, f64)) -> Self {
        let least = (high - low) / 6.0;
        let power = 10f64.powf(least.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= least * 0.999).unwrap_or(least);
        let (first, last) = ((low / step).ceil() as i64, (high / step * (1.0 + 1e-9)).floor() as i64);
        let (unit, suffix) = match low.abs().max(high.abs()) {
            most if most >= 2e6 => (1e6, "M"),
            most if most >= 1e4 => (1e3, "k"),
            _ => (1.0, ""),
        };
        let decimals = (-(step / unit).log10() - 1e-9).ceil().max(0.0) as usize;
        Ticks { places: (first..=last).map(|i| i as f64 * step).collect(), value: |v| v, decimals, unit, suffix }
    }

    /// Of a range of decimal logarithms: at 1, 2 and 5 times powers of ten, or at fewer where those
    /// would crowd; a range too short for two of them is treated as linear.
    fn log((low, high): (f64, f64)) -> Self {
        let decades = low.floor() as i64..=high.ceil() as i64;
        let within = |multiples: &[f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|d| multiples.iter().map(move |m| m.log10() + d as f64));
            all.filter(|place| (low..=high).contains(place)).collect()
        };
        let full = within(&[1.0, 2.0, 5.0]);
        let places = if full.len() > 8 { within(&[1.0]) } else { full };
        if places.len() < 2 {
            let plain = Ticks::linear((10f64.powf(low), 10f64.powf(high)));
            let places = plain.places.iter().filter(|v| **v > 0.0).map(|v| v.log10()).collect();
            return Ticks { places, value: |v| 10f64.powf(v), ..plain };
        }
        let decimals = if low < 0.0 { (-low).ceil() as usize } else { 0 };
        Ticks { places, value: |v| 10f64.powf(v), decimals, unit: 1.0, suffix: "" }
    }

    fn label(&self, place: f64) -> String {
        let value = (self.value)(place) / self.unit;
        match self.decimals {
            // Minus zero and the like.
            _ if value.abs() < 1e-300 => "0".to_owned(),
            5.. => format!("{value:.0e}"),
            decimals => format!("{value:.decimals$}{}", self.suffix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_tell_neighbours_apart() {
        let labels = |ticks: Ticks| ticks.places.iter().map(|&p| ticks.label(p)).collect::<Vec<_>>();
        assert_eq!(labels(Ticks::linear((0.0, 1.0))), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(Ticks::linear((0.0, 5e-5))), ["0", "1e-5", "2e-5", "3e-5", "4e-5", "5e-5"]);
        assert_eq!(labels(Ticks::linear((0.0, 31_000.0))), ["0", "10k", "20k", "30k"]);
        assert_eq!(labels(Ticks::linear((5.5, 8.4))), ["5.5", "6.0", "6.5", "7.0", "7.5", "8.0"]);
        assert_eq!(labels(Ticks::log((1.2, 3.7))), ["20", "50", "100", "200", "500", "1000", "2000", "5000"]);
        assert_eq!(labels(Ticks::log((0.0, 6.0))).len(), 7);
        assert_eq!(labels(Ticks::log((30f64.log10(), 45f64.log10()))), ["30", "35", "40", "45"]);
    }
}
