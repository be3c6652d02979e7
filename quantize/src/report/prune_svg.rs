//! Pruning as a picture: how the norms of groups fell, how many were left, how strongly they were pulled and what it
//! cost; and the channels of every layer before and after.

use super::grouped;
use super::layers::shortened;
use super::plan_svg::escape;
use crate::prune::trajectory::{Kept, Trajectory};
use std::fmt::Write;

const LEFT: f64 = 80.0;
const WIDTH: f64 = 820.0;
const LEGEND: f64 = 220.0;
const TOP: f64 = 64.0;
const NORMS: f64 = 380.0;
const SMALL: f64 = 120.0;
const GAP: f64 = 46.0;
/// Room for vanished groups below the logarithmic axis.
const FLOOR: f64 = 24.0;
/// Lines of groups, points of a line, names in the legend.
const MOST_LINES: usize = 200;
const MOST_POINTS: usize = 160;
const MOST_NAMES: usize = 26;
/// Characters of a name: its end, which tells layers of a kind apart.
const LABEL: usize = 30;
/// Decades of the axis of norms.
const DECADES: i32 = 6;

/// An SVG document of a run.
pub fn trajectory_svg(run: &Trajectory, title: &str) -> String {
    let (w, h) = (LEFT + WIDTH + LEGEND, TOP + NORMS + FLOOR + 3.0 * (SMALL + GAP) + 50.0);
    let last = |values: &[usize]| values.last().map_or(0, |&n| n as u64);
    let line =
        format!("{}: {} groups left after step {}", title, grouped(last(&run.nonzero)), grouped(last(&run.steps)));
    let mut svg = document(w, h, &line);
    norms(&mut svg, run);
    let count: Vec<f64> = run.nonzero.iter().map(|&n| n as f64).collect();
    let loss: Vec<f64> = run.loss.iter().map(|&l| f64::from(l)).collect();
    let panels: [(&str, &[(&[f64], &str)]); 3] = [
        ("groups left, and the schedule (dashed)", &[(&count, "stroke=\"#2563eb\""), (&run.wanted, DASHED)]),
        ("strength lambda", &[(&run.lambda, "stroke=\"#d97706\"")]),
        ("loss", &[(&loss, "stroke=\"#059669\"")]),
    ];
    for (i, (name, curves)) in panels.iter().enumerate() {
        panel(&mut svg, run, TOP + NORMS + FLOOR + GAP + i as f64 * (SMALL + GAP), name, curves);
    }
    steps(&mut svg, run, h - 24.0);
    svg.push_str("</svg>\n");
    svg
}

const DASHED: &str = "stroke=\"#111\" stroke-dasharray=\"5 4\"";

fn document(w: f64, h: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{w}\" height=\"{h}\" fill=\"white\"/>\n<text x=\"20\" y=\"24\" font-size=\"16\">{}</text>\n",
        escape(title)
    )
}

/// Colour of a layer: the circle is walked once, from the first to the last.
fn colour(layer: usize, layers: usize) -> String {
    format!("hsl({:.0},65%,45%)", 300.0 * layer as f64 / layers.max(1) as f64)
}

/// Indices of at most `most` of `n` things, the last one among them.
fn spread(n: usize, most: usize) -> Vec<usize> {
    let count = n.min(most);
    (0..count).map(|i| if count > 1 { i * (n - 1) / (count - 1) } else { n - 1 }).collect()
}

/// Horizontal place of the record `i`.
fn x(run: &Trajectory, i: usize) -> f64 {
    let (first, last) = (run.steps.first().copied().unwrap_or(0), run.steps.last().copied().unwrap_or(0));
    LEFT + WIDTH * (run.steps[i] - first) as f64 / (last - first).max(1) as f64
}

/// Norms on a logarithmic axis, vanished groups on the rule below it.
fn norms(svg: &mut String, run: &Trajectory) {
    let largest = run.norms.iter().flatten().filter(|n| n.is_finite()).fold(0f32, |a, &b| a.max(b));
    let top = if largest > 0.0 { largest.log10().ceil() as i32 } else { 0 };
    let zero = TOP + NORMS + FLOOR;
    let y = |n: f32| match n {
        n if n > 0.0 => TOP + NORMS * ((f64::from(top) - f64::from(n).log10()) / f64::from(DECADES)).clamp(0.0, 1.0),
        _ => zero,
    };
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" fill=\"#555\">norms of groups</text>", TOP - 10.0);
    for decade in top - DECADES..=top {
        rule(svg, y(10f32.powi(decade)), &format!("1e{decade}"), "#ddd");
    }
    rule(svg, zero, "0", "#555");
    let points = spread(run.steps.len(), MOST_POINTS);
    for j in spread(run.sample.len(), MOST_LINES) {
        let norm = |i: usize| run.norms[i].get(j).copied().unwrap_or(0.0);
        let is_flat = |at: usize| at > 0 && at + 1 < points.len() && (at - 1..at + 2).all(|i| norm(points[i]) <= 0.0);
        let line: Vec<(f64, f64)> = (0..points.len())
            .filter(|&at| !is_flat(at) && norm(points[at]).is_finite())
            .map(|at| (x(run, points[at]), y(norm(points[at]))))
            .collect();
        let stroke = format!("stroke=\"{}\" stroke-opacity=\"0.45\"", colour(run.layer[j], run.layers.len()));
        polyline(svg, &line, &stroke);
    }
    legend(svg, run);
}

fn legend(svg: &mut String, run: &Trajectory) {
    for (row, layer) in spread(run.layers.len(), MOST_NAMES).into_iter().enumerate() {
        let (left, y) = (LEFT + WIDTH + 16.0, TOP + 15.0 * row as f64);
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{y}\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{}\" y=\"{}\">{}</text>",
            colour(layer, run.layers.len()),
            left + 15.0,
            y + 9.0,
            escape(&shortened(&run.layers[layer], LABEL))
        );
    }
}

/// Curves over a linear axis from zero.
fn panel(svg: &mut String, run: &Trajectory, top: f64, name: &str, curves: &[(&[f64], &str)]) {
    let largest = curves.iter().flat_map(|c| c.0).filter(|v| v.is_finite()).fold(0f64, |a, &b| a.max(b));
    let scale = if largest > 0.0 { largest } else { 1.0 };
    let y = |v: f64| top + SMALL * (1.0 - (v / scale).clamp(0.0, 1.0));
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" fill=\"#555\">{name}</text>", top - 8.0);
    for i in 0..=2 {
        let value = scale * f64::from(i) / 2.0;
        rule(svg, y(value), &number(value), if i == 0 { "#555" } else { "#ddd" });
    }
    let points = spread(run.steps.len(), 4 * MOST_POINTS);
    for (values, stroke) in curves {
        let finite = points.iter().filter(|&&i| values[i].is_finite());
        polyline(svg, &finite.map(|&i| (x(run, i), y(values[i]))).collect::<Vec<_>>(), stroke);
    }
}

/// With three digits.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        v if v >= 100.0 => grouped(v.round() as u64),
        v if v >= 0.01 => format!("{v:.3}").chars().take(5).collect(),
        v => format!("{v:.1e}"),
    }
}

fn steps(svg: &mut String, run: &Trajectory, y: f64) {
    for i in spread(run.steps.len(), 6) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>",
            x(run, i),
            grouped(run.steps[i] as u64)
        );
    }
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\">step</text>", LEFT + WIDTH + 30.0);
}

fn rule(svg: &mut String, y: f64, label: &str, stroke: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{stroke}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
        LEFT + WIDTH,
        LEFT - 8.0,
        y + 4.0
    );
}

fn polyline(svg: &mut String, points: &[(f64, f64)], stroke: &str) {
    svg.push_str("<polyline points=\"");
    points.iter().for_each(|(x, y)| {
        let _ = write!(svg, "{x:.1},{y:.1} ");
    });
    let _ = writeln!(svg, "\" fill=\"none\" {stroke}/>");
}

const BAR: f64 = 16.0;
const STEP: f64 = 24.0;
const NAME: f64 = 210.0;

/// An SVG document of the channels before and after.
pub fn channels_svg(layers: &[Kept], title: &str) -> String {
    let most = layers.iter().map(|l| l.before.max(l.after)).max().unwrap_or(1).max(1);
    let (before, after): (usize, usize) = (layers.iter().map(|l| l.before).sum(), layers.iter().map(|l| l.after).sum());
    let (width, top) = (640.0, 64.0);
    let line = format!("{title}: {} of {} channels left", grouped(after as u64), grouped(before as u64));
    let mut svg = document(NAME + width + 150.0, top + STEP * layers.len() as f64 + 20.0, &line);
    svg.push_str(
        "<rect x=\"20\" y=\"36\" width=\"12\" height=\"12\" fill=\"hsl(210,40%,85%)\"/><text x=\"38\" y=\"46\">before</text>\n\
         <rect x=\"90\" y=\"36\" width=\"12\" height=\"12\" fill=\"hsl(210,60%,50%)\"/><text x=\"108\" y=\"46\">after</text>\n",
    );
    for (i, layer) in layers.iter().enumerate() {
        let y = top + STEP * i as f64;
        let wide = |n: usize| width * n as f64 / most as f64;
        let _ = writeln!(
            svg,
            "<g><title>{}</title><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAME}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"hsl(210,40%,85%)\"/>\
             <rect x=\"{NAME}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"hsl(210,60%,50%)\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{} of {} ({} %)</text></g>",
            escape(&layer.layer),
            NAME - 8.0,
            y + 12.0,
            escape(&shortened(&layer.layer, LABEL)),
            wide(layer.before),
            y + 4.0,
            wide(layer.after),
            BAR - 8.0,
            NAME + wide(layer.before.max(layer.after)) + 6.0,
            y + 12.0,
            grouped(layer.after as u64),
            grouped(layer.before as u64),
            100 * layer.after / layer.before.max(1)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuit::random::Random;

    /// Groups of five layers, of which most fall to zero.
    fn run() -> Trajectory {
        let layers: Vec<String> = (1..=5).map(|i| format!("/features/block<{i}>/conv")).collect();
        let layer: Vec<usize> = (0..400).map(|j| j / 80).collect();
        let mut random = Random::new(1, 0);
        let start: Vec<f64> = (0..400).map(|_| f64::from(random.normal()).exp()).collect();
        let mut trajectory = Trajectory::new(&layers, &layer, 300);
        for step in 0..600usize {
            let level = (step as f64 / 400.0).min(1.0);
            let norm =
                |n: &f64| if *n < 2.0 { (n * (1.0 - level / n.max(0.4)).max(0.0)).abs() } else { n * (1.0 + level) };
            let norms: Vec<f64> = start.iter().map(norm).collect();
            let loss = if step == 300 { f32::NAN } else { 2.0 / (1.0 + step as f32 / 50.0) + 0.1 * random.uniform() };
            trajectory.record(5 * step, &norms, 400.0 - 300.0 * level, 1e-3 * level, loss);
        }
        trajectory
    }

    #[test]
    fn pictures_are_well_formed_and_small() {
        let run = run();
        let kept: Vec<Kept> =
            run.layers.iter().map(|l| Kept { layer: l.clone(), before: 80, after: 20 + l.len() }).collect();
        for svg in [trajectory_svg(&run, "a <run>"), channels_svg(&kept, "a <run>")] {
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
            assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("<run>"));
            assert!(svg.len() < 600_000, "{} bytes", svg.len());
        }
    }

    #[test]
    fn nothing_recorded_is_a_picture_too() {
        assert!(trajectory_svg(&Trajectory::default(), "empty").contains("</svg>"));
        assert!(channels_svg(&[], "empty").contains("</svg>"));
    }
}
