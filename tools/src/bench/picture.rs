//! Horizontal bars, in panels that share their axis.

use std::fmt::Write;

/// A picture.
pub struct Chart {
    /// First line.
    pub title: String,
    /// Second line: unit and conditions.
    pub subtitle: String,
    /// Names and colours.
    pub series: Vec<(String, &'static str)>,
    /// Panels beside one another.
    pub columns: usize,
    /// From zero, for values of one size; else a logarithmic axis.
    pub is_linear: bool,
    /// In reading order.
    pub panels: Vec<Panel>,
}

/// Groups of bars under a title.
pub struct Panel {
    /// What they have in common.
    pub title: String,
    /// From top to bottom.
    pub groups: Vec<Group>,
}

/// Bars with one label.
pub struct Group {
    /// Left of the bars.
    pub label: String,
    /// From top to bottom.
    pub bars: Vec<Bar>,
}

/// One bar.
pub struct Bar {
    /// Index of its series.
    pub series: usize,
    /// Above zero.
    pub value: f64,
    /// Right of it.
    pub text: String,
}

const WIDTH: f64 = 860.0;
const MARGIN: f64 = 16.0;
const GAP: f64 = 24.0;
const HEAD: f64 = 84.0;
const BAR: f64 = 13.0;
const BETWEEN: f64 = 7.0;
/// Width of a character, on average.
const CHAR: f64 = 6.3;

impl Chart {
    /// The SVG.
    pub fn svg(&self) -> String {
        let columns = self.columns.clamp(1, self.panels.len().max(1));
        let width = (WIDTH - 2.0 * MARGIN - GAP * (columns - 1) as f64) / columns as f64;
        let rows: Vec<&[Panel]> = self.panels.chunks(columns).collect();
        let heights: Vec<f64> = rows.iter().map(|r| r.iter().map(height).fold(0.0, f64::max)).collect();
        let total = HEAD + heights.iter().sum::<f64>() + MARGIN;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {total:.0}\" width=\"{WIDTH}\" height=\"{total:.0}\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" font-size=\"11\" fill=\"#1f2937\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        );
        text(&mut svg, MARGIN, 26.0, "font-size=\"16\" font-weight=\"bold\"", &self.title);
        text(&mut svg, MARGIN, 44.0, "fill=\"#6b7280\"", &self.subtitle);
        let mut x = MARGIN;
        for (name, colour) in &self.series {
            let _ =
                writeln!(svg, "<rect x=\"{x:.1}\" y=\"55\" width=\"11\" height=\"11\" rx=\"2\" fill=\"{colour}\"/>");
            text(&mut svg, x + 16.0, 64.5, "", name);
            x += 16.0 + 22.0 + CHAR * name.chars().count() as f64;
        }
        let axis = self.axis();
        let mut top = HEAD;
        for (row, height) in rows.iter().zip(heights) {
            for (i, panel) in row.iter().enumerate() {
                self.panel(&mut svg, panel, (MARGIN + (width + GAP) * i as f64, top, width), axis);
            }
            top += height;
        }
        svg + "</svg>\n"
    }

    /// Ends of the axis, a step of 1-2-5 outside of all values.
    fn axis(&self) -> (f64, f64) {
        let bars = self.panels.iter().flat_map(|p| &p.groups).flat_map(|g| &g.bars);
        let (min, max) = bars.fold((f64::INFINITY, 0.0f64), |(lo, hi), b| (lo.min(b.value), hi.max(b.value)));
        if min > max || min <= 0.0 {
            return (0.1, 1.0);
        }
        if self.is_linear {
            return (0.0, max);
        }
        let below = ticks(min / 10.0, min * 0.8).last().copied().unwrap_or(min / 10.0);
        (below, max)
    }

    fn panel(&self, svg: &mut String, panel: &Panel, (left, top, width): (f64, f64, f64), (min, max): (f64, f64)) {
        let labels = panel.groups.iter().map(|g| g.label.chars().count()).max().unwrap_or(0) as f64;
        let texts = panel.groups.iter().flat_map(|g| &g.bars).map(|b| b.text.chars().count()).max().unwrap_or(0) as f64;
        let start = left + CHAR * labels + 8.0;
        let room = width - (start - left) - CHAR * texts - 6.0;
        let at = |value: f64| match self.is_linear {
            true => room * value / max,
            false => room * (value / min).ln() / (max / min).ln(),
        };
        text(svg, left, top + 12.0, "font-size=\"13\" font-weight=\"bold\"", &panel.title);
        let (first, bottom) = (top + 24.0, top + height(panel) - 30.0);
        // Where there are many, only powers of ten.
        let mut marks = if self.is_linear { even_ticks(max) } else { ticks(min, max) };
        if marks.len() > 8 && !self.is_linear {
            marks.retain(|t| t.log10().fract() == 0.0);
        }
        for tick in marks {
            let x = start + at(tick);
            let _ =
                writeln!(svg, "<path d=\"M{x:.1} {first:.1}V{:.1}\" stroke=\"#e5e7eb\" fill=\"none\"/>", bottom + 2.0);
            let style = "text-anchor=\"middle\" font-size=\"9.5\" fill=\"#9ca3af\"";
            text(svg, x, bottom + 14.0, style, &tick.to_string());
        }
        let mut y = first;
        for group in &panel.groups {
            let tall = BAR * group.bars.len() as f64;
            let is_first = group.label.starts_with(&self.series[0].0);
            let bold = if is_first { " font-weight=\"bold\"" } else { "" };
            let style = format!("text-anchor=\"end\"{bold}");
            text(svg, start - 6.0, y + tall / 2.0 + 4.0, &style, &group.label);
            for bar in &group.bars {
                let (length, colour) = (at(bar.value).max(1.0), self.series[bar.series].1);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{start:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
                    BAR - 1.0
                );
                let style = if bar.series == 0 { "font-weight=\"bold\"" } else { "fill=\"#6b7280\"" };
                text(svg, start + length + 4.0, y + BAR - 3.5, style, &bar.text);
                y += BAR;
            }
            y += BETWEEN;
        }
    }
}

/// Title, groups, axis, and the distance to what follows.
fn height(panel: &Panel) -> f64 {
    let groups = panel.groups.iter().map(|g| BAR * g.bars.len() as f64 + BETWEEN);
    24.0 + groups.sum::<f64>() + 30.0
}

/// From zero, at most eight steps of 1, 2 or 5 times a power of ten.
fn even_ticks(max: f64) -> Vec<f64> {
    let power = 10f64.powf(max.log10().floor() - 1.0);
    let step = [1.0, 2.0, 5.0, 10.0, 20.0].map(|s| s * power).into_iter().find(|s| max / s <= 8.0).unwrap_or(max);
    (0..=(max / step) as usize).map(|i| i as f64 * step).collect()
}

/// 1, 2, 5 times powers of ten within the ends.
fn ticks(min: f64, max: f64) -> Vec<f64> {
    let decades = min.log10().floor() as i32..=max.log10().ceil() as i32;
    // Parsed, as 5 * 10^-1 would not print as 0.5.
    let tick = |decade: i32| [1, 2, 5].map(|step| format!("{step}e{decade}").parse().unwrap_or(f64::NAN));
    decades.flat_map(tick).filter(|t| (min..=max).contains(t)).collect()
}

fn text(svg: &mut String, x: f64, y: f64, style: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_one_two_five() {
        assert_eq!(ticks(0.2, 7.0), [0.2, 0.5, 1.0, 2.0, 5.0]);
        assert!(ticks(0.3, 0.4).is_empty());
    }

    #[test]
    fn bars_stay_inside() {
        let bar = |value: f64| Group { label: "<M4>".into(), bars: vec![Bar { series: 0, value, text: "1".into() }] };
        let panel = Panel { title: "ic".into(), groups: [0.2, 9.4].map(bar).into() };
        let chart = Chart {
            title: String::new(),
            subtitle: String::new(),
            series: vec![("Pith".into(), "#000")],
            columns: 3,
            is_linear: false,
            panels: vec![panel],
        };
        assert_eq!(chart.axis(), (0.1, 9.4));
        let svg = chart.svg();
        assert!(svg.contains("&lt;M4>") && !svg.contains("NaN"));
    }
}
