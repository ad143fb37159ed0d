//! Line charts as SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 250.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 58.0;

/// Told apart by people who see colours differently, too (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// One chart.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

/// One axis; what lies outside its range is cut off.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// With the unit.
    pub(crate) label: &'static str,
    pub(crate) scale: Scale,
    pub(crate) from: f64,
    pub(crate) to: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    Log,
}

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    pub(crate) style: Style,
    /// Which colour.
    pub(crate) colour: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Solid,
    Dashed,
    /// Points without a line.
    Marks,
}

impl Axis {
    /// Share of the axis at which `value` lies.
    fn at(&self, value: f64) -> f64 {
        let position = match self.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Log => (value / self.from).log10() / (self.to / self.from).log10(),
        };
        position.clamp(0.0, 1.0)
    }

    fn shows(&self, value: f64) -> bool {
        value.is_finite() && value >= self.from * (1.0 - 1e-9) && value <= self.to * (1.0 + 1e-9)
    }

    /// Where ticks are, and whether they have a number.
    fn ticks(&self) -> Vec<(f64, bool)> {
        match self.scale {
            Scale::Linear => (0..=5)
                .map(|tick| (self.from + (self.to - self.from) * f64::from(tick) / 5.0, true))
                .collect(),
            Scale::Log => {
                let decades = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
                let ticks = decades.flat_map(|decade| {
                    (1..10).map(move |digit| (f64::from(digit) * 10_f64.powi(decade), digit == 1))
                });
                ticks.filter(|(value, _)| self.shows(*value)).collect()
            }
        }
    }
}

impl Chart {
    /// The chart, whole and by itself.
    pub(crate) fn svg(&self) -> String {
        let mut svg = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut svg);
        svg
    }

    fn write(&self, svg: &mut String) -> std::fmt::Result {
        writeln!(
            svg,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>
<text x="{LEFT}" y="26" font-size="16" font-weight="bold">{}</text>"##,
            escaped(&self.title)
        )?;
        self.grid(svg)?;
        for (row, series) in self.series.iter().enumerate() {
            self.line(svg, series)?;
            self.legend(svg, row, series)?;
        }
        writeln!(svg, "</svg>")
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.at(value) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.at(value) * (HEIGHT - TOP - BOTTOM)
    }

    fn grid(&self, svg: &mut String) -> std::fmt::Result {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, is_numbered) in self.x.ticks() {
            let x = self.x(value);
            let colour = if is_numbered { "#cccccc" } else { "#eeeeee" };
            writeln!(svg, r#"<line x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom}" stroke="{colour}"/>"#)?;
            if is_numbered {
                let (y, number) = (bottom + 18.0, short(value));
                writeln!(svg, r#"<text x="{x:.1}" y="{y}" text-anchor="middle">{number}</text>"#)?;
            }
        }
        for (value, is_numbered) in self.y.ticks() {
            let y = self.y(value);
            let colour = if is_numbered { "#cccccc" } else { "#eeeeee" };
            writeln!(svg, r#"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="{colour}"/>"#)?;
            if is_numbered {
                let (x, y, number) = (LEFT - 8.0, y + 4.5, short(value));
                writeln!(svg, r#"<text x="{x}" y="{y:.1}" text-anchor="end">{number}</text>"#)?;
            }
        }
        let (width, height) = (right - LEFT, bottom - TOP);
        let (middle, below) = (LEFT + width / 2.0, HEIGHT - 16.0);
        writeln!(
            svg,
            r##"<rect x="{LEFT}" y="{TOP}" width="{width}" height="{height}" fill="none" stroke="#555555"/>
<text x="{middle}" y="{below}" text-anchor="middle">{}</text>
<text transform="translate(22 {}) rotate(-90)" text-anchor="middle">{}</text>"##,
            escaped(self.x.label),
            TOP + height / 2.0,
            escaped(self.y.label)
        )
    }

    fn line(&self, svg: &mut String, series: &Series) -> std::fmt::Result {
        let colour = colour(series);
        let shown = series.points.iter().filter(|(x, y)| self.x.shows(*x) && self.y.shows(*y));
        let points: Vec<(f64, f64)> = shown.map(|(x, y)| (self.x(*x), self.y(*y))).collect();
        if series.style != Style::Marks {
            let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let dashes = dashes(series);
            writeln!(
                svg,
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2.2"{dashes}/>"#,
                path.join(" ")
            )?;
        }
        if series.style == Style::Marks || points.len() <= 12 {
            for (x, y) in &points {
                writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{colour}"/>"#)?;
            }
        }
        Ok(())
    }

    fn legend(&self, svg: &mut String, row: usize, series: &Series) -> std::fmt::Result {
        let colour = colour(series);
        let (left, y) = (WIDTH - RIGHT + 16.0, TOP + 12.0 + 24.0 * row as f64);
        let (right, text, baseline) = (left + 28.0, left + 36.0, y + 4.5);
        if series.style == Style::Marks {
            writeln!(svg, r#"<circle cx="{}" cy="{y}" r="3.5" fill="{colour}"/>"#, left + 14.0)?;
        } else {
            let dashes = dashes(series);
            writeln!(
                svg,
                r#"<line x1="{left}" y1="{y}" x2="{right}" y2="{y}" stroke="{colour}" stroke-width="2.2"{dashes}/>"#
            )?;
        }
        writeln!(svg, r#"<text x="{text}" y="{baseline}">{}</text>"#, escaped(&series.name))
    }
}

fn colour(series: &Series) -> &'static str {
    COLOURS[series.colour % COLOURS.len()]
}

fn dashes(series: &Series) -> &'static str {
    if series.style == Style::Dashed { r#" stroke-dasharray="7 5""# } else { "" }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A number as people write it on an axis: 20, 3k, 1M, 0.05.
pub(crate) fn short(value: f64) -> String {
    const STEPS: [(f64, &str); 5] = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let step = STEPS.iter().find(|(step, _)| value.abs() >= *step * (1.0 - 1e-9));
    let (scaled, letter) = step.map_or((value, ""), |(step, letter)| (value / step, *letter));
    let digits = match scaled.abs() {
        scaled if scaled >= 99.5 || scaled == 0.0 => 0,
        scaled if scaled >= 9.95 => 1,
        scaled if scaled >= 0.995 => 2,
        scaled => (1 - scaled.log10().floor() as i32).clamp(2, 8) as usize,
    };
    let number = format!("{scaled:.digits$}");
    let number =
        if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { &number };
    format!("{number}{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.05, "0.05"),
            (0.001, "0.001"),
            (1.0, "1"),
            (2.5, "2.5"),
            (20.0, "20"),
            (1000.0, "1k"),
            (12_340.0, "12.3k"),
            (1e6, "1M"),
            (2.5e10, "25G"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn what_lies_outside_is_left_out_and_text_is_escaped() {
        let axis = |to| Axis { label: "lag < 1 s", scale: Scale::Log, from: 1.0, to };
        let points = vec![(1.0, 1.0), (10.0, 5.0), (100.0, 1e9)];
        let series = Series { name: "a & b".to_owned(), points, style: Style::Solid, colour: 0 };
        let chart = Chart { title: "t".to_owned(), x: axis(100.0), y: axis(10.0), series: vec![series] };
        let svg = chart.svg();
        assert!(svg.contains("a &amp; b") && svg.contains("lag &lt; 1 s"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
    }
}
