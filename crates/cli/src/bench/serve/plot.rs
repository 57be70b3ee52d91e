//! Line plots as inline SVG: axes with round ticks, series, shaded spans. Knows nothing of servers.
//!
//! Invariant: every number written is finite and every text escaped, whatever the points are.

use std::fmt::Write as _;

/// Size of a plot in its own units, and what the axes take of it.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
/// Colours that people who see few colours tell apart (Okabe and Ito), in turn.
const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"];
/// Series of one plot; further ones are not drawn.
const MAX_SERIES: usize = 14;
/// Ticks of an axis, about.
const TICKS: f64 = 5.0;

/// How an axis spaces its values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Spacing {
    /// From zero.
    Linear,
    /// Powers; values of zero or less stand at the smallest positive one.
    Log,
}

/// One line, or dots.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    pub(super) dots_only: bool,
}

/// A plot to be drawn.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) x_label: &'static str,
    pub(super) y_label: &'static str,
    pub(super) x_spacing: Spacing,
    pub(super) y_spacing: Spacing,
    pub(super) series: Vec<Series>,
    /// (from, to) on the x axis, shaded.
    pub(super) shaded: Option<(f64, f64)>,
}

impl Plot {
    /// Appends a heading and the plot to a page; nothing where there is no point.
    pub(super) fn draw(&self, page: &mut String) {
        let finite = |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite();
        let points: Vec<(f64, f64)> =
            self.series.iter().flat_map(|series| &series.points).filter(finite).copied().collect();
        if points.is_empty() {
            return;
        }
        let x = Axis::over(points.iter().map(|p| p.0), self.x_spacing, LEFT, WIDTH - RIGHT);
        let y = Axis::over(points.iter().map(|p| p.1), self.y_spacing, HEIGHT - BOTTOM, TOP);
        let title = escape(&self.title);
        let _ = write!(
            page,
            "<figure><figcaption>{title}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{title}\">"
        );
        if let Some((from, to)) = self.shaded {
            let (from, to) = (x.place(from), x.place(to));
            let (left, width) = (from.min(to), (to - from).abs());
            let height = HEIGHT - BOTTOM - TOP;
            let _ = write!(
                page,
                "<rect class=\"span\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\"/>"
            );
        }
        self.draw_axes(page, &x, &y);
        for (index, series) in self.series.iter().take(MAX_SERIES).enumerate() {
            series.draw(page, index, &x, &y);
        }
        page.push_str("</svg></figure>\n");
    }

    fn draw_axes(&self, page: &mut String, x: &Axis, y: &Axis) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in x.ticks() {
            let (at, below, label) = (x.place(tick), bottom + 16.0, short(tick));
            let _ = write!(
                page,
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>\
                 <text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{label}</text>"
            );
        }
        for tick in y.ticks() {
            let (at, label) = (y.place(tick), short(tick));
            let (before, middle) = (LEFT - 6.0, at + 4.0);
            let _ = write!(
                page,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>\
                 <text x=\"{before}\" y=\"{middle:.1}\" text-anchor=\"end\">{label}</text>"
            );
        }
        let (middle, low) = ((LEFT + right) / 2.0, HEIGHT - 8.0);
        let height = (TOP + bottom) / 2.0;
        let _ = write!(
            page,
            "<text x=\"{middle}\" y=\"{low}\" text-anchor=\"middle\">{}</text>\
             <text x=\"14\" y=\"{height}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {height})\">{}</text>",
            escape(self.x_label),
            escape(self.y_label)
        );
    }
}

impl Series {
    fn draw(&self, page: &mut String, index: usize, x: &Axis, y: &Axis) {
        let colour = COLOURS[index % COLOURS.len()];
        // The second round through the colours is dashed.
        let dash = if index < COLOURS.len() { "" } else { " stroke-dasharray=\"5 3\"" };
        let placed: Vec<(f64, f64)> = self
            .points
            .iter()
            .filter(|point| point.0.is_finite() && point.1.is_finite())
            .map(|point| (x.place(point.0), y.place(point.1)))
            .collect();
        if !self.dots_only && placed.len() > 1 {
            let _ = write!(page, "<polyline fill=\"none\" stroke=\"{colour}\"{dash} points=\"");
            for (x, y) in &placed {
                let _ = write!(page, "{x:.1},{y:.1} ");
            }
            page.push_str("\"/>");
        }
        // Curves of many points need no marks.
        if self.dots_only || placed.len() <= 20 {
            let radius = if self.dots_only { 1.6 } else { 3.0 };
            for (x, y) in &placed {
                let _ = write!(
                    page,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\"/>"
                );
            }
        }
        let (left, top) = (WIDTH - RIGHT + 10.0, TOP + 10.0 + 18.0 * index as f64);
        let (to, text_left, text_top) = (left + 16.0, left + 22.0, top + 4.0);
        let _ = write!(
            page,
            "<line x1=\"{left}\" y1=\"{top}\" x2=\"{to}\" y2=\"{top}\" stroke=\"{colour}\" stroke-width=\"3\"{dash}/>\
             <text x=\"{text_left}\" y=\"{text_top}\">{}</text>",
            escape(&self.name)
        );
    }
}

/// Values → places along one direction.
#[derive(Clone, Copy, Debug)]
struct Axis {
    low: f64,
    high: f64,
    spacing: Spacing,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, spacing: Spacing, from: f64, to: f64) -> Self {
        let wanted = values.filter(|value| spacing == Spacing::Linear || *value > 0.0);
        let (low, high) = wanted
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = match spacing {
            Spacing::Linear => (low.min(0.0), high.max(0.0)),
            Spacing::Log => (low, high),
        };
        let (low, high) =
            if low.is_finite() && high.is_finite() { (low, high) } else { (1.0, 1.0) };
        // One value alone still needs a span.
        let high = match spacing {
            Spacing::Linear if high <= low => low + 1.0,
            Spacing::Log if high <= low * 1.01 => low * 2.0,
            _ => high,
        };
        Self { low, high, spacing, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = match self.spacing {
            Spacing::Linear => (value - self.low) / (self.high - self.low),
            Spacing::Log => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
        };
        self.from + (self.to - self.from) * share.clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        let candidates: Vec<f64> = match self.spacing {
            Spacing::Linear => {
                let step = round_step((self.high - self.low) / TICKS);
                let first = (self.low / step).ceil();
                (0..=2 * TICKS as usize).map(|index| (first + index as f64) * step).collect()
            }
            Spacing::Log => {
                let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
                let few = decades.clone().count() <= 3;
                let factors: &[f64] = if few { &[1.0, 2.0, 5.0] } else { &[1.0] };
                decades
                    .flat_map(|decade| factors.iter().map(move |f| f * 10_f64.powi(decade)))
                    .collect()
            }
        };
        let inside = |tick: &f64| *tick >= self.low * 0.999 && *tick <= self.high * 1.001;
        candidates.into_iter().filter(inside).collect()
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= least)
        .unwrap_or(10.0 * power)
}

/// As few digits as tell ticks apart.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        middle if middle >= 10.0 || middle == 0.0 => format!("{value:.0}"),
        _ => {
            let text = format!("{value:.2}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

/// Text as it may stand in HTML and in attributes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::{Axis, Plot, Series, Spacing, round_step, short};

    fn plot(points: Vec<(f64, f64)>, spacing: Spacing) -> Plot {
        Plot {
            title: "<t> & \"u\"".to_owned(),
            x_label: "x",
            y_label: "y",
            x_spacing: spacing,
            y_spacing: spacing,
            series: vec![Series { name: "a<b".to_owned(), points, dots_only: false }],
            shaded: Some((0.5, 1.5)),
        }
    }

    #[test]
    fn whatever_the_points_the_numbers_are_finite_and_the_texts_escaped() {
        for points in [
            vec![(0.0, 0.0)],
            vec![(1.0, 1.0), (1.0, 1.0)],
            vec![(0.0, 5.0), (10.0, -3.0), (f64::NAN, 1.0), (2.0, f64::INFINITY)],
            vec![(-1.0, -1.0)],
            vec![(1e-9, 1e12), (1e9, 1e-12)],
        ] {
            for spacing in [Spacing::Linear, Spacing::Log] {
                let mut page = String::new();
                plot(points.clone(), spacing).draw(&mut page);
                assert!(page.starts_with("<figure>") && page.ends_with("</figure>\n"), "{page}");
                for bad in ["NaN", "inf", "<t>", "a<b", "\"u\""] {
                    assert!(!page.contains(bad), "{points:?} {spacing:?}: {bad} in {page}");
                }
            }
        }
        let mut page = String::new();
        plot(vec![(f64::NAN, 1.0)], Spacing::Linear).draw(&mut page);
        assert!(page.is_empty());
    }

    #[test]
    fn axes_have_round_ticks_within() {
        for (values, spacing, expected) in [
            (vec![3.0, 96.0], Spacing::Linear, vec![0.0, 20.0, 40.0, 60.0, 80.0]),
            (vec![0.0, 0.3], Spacing::Linear, vec![0.0, 0.1, 0.2, 0.3]),
            (vec![1.0, 16.0], Spacing::Log, vec![1.0, 2.0, 5.0, 10.0]),
            (vec![1.0, 20_000.0], Spacing::Log, vec![1.0, 10.0, 100.0, 1000.0, 10_000.0]),
        ] {
            let ticks = Axis::over(values.into_iter(), spacing, 0.0, 100.0).ticks();
            let rounded: Vec<f64> = ticks.iter().map(|tick| (tick * 1e6).round() / 1e6).collect();
            assert_eq!(rounded, expected);
        }
        assert_eq!((round_step(1.1), round_step(0.5), round_step(6.0)), (2.0, 0.5, 10.0));
        assert_eq!(
            [short(0.25), short(12_000.0), short(0.0), short(40.0)],
            ["0.25", "12k", "0", "40"]
        );
    }

    #[test]
    fn places_run_from_end_to_end() {
        let axis = Axis::over([1.0, 100.0].into_iter(), Spacing::Log, 50.0, 10.0);
        assert_eq!((axis.place(1.0), axis.place(100.0)), (50.0, 10.0));
        assert!((axis.place(10.0) - 30.0).abs() < 1e-9);
        assert_eq!(axis.place(0.0), 50.0);
    }
}
