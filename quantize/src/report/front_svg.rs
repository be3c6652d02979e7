//! The front of a search as a picture: bytes of the file against how good its outputs are.

use super::grouped;
use super::plan_svg::escape;
use crate::search::Candidate;
use std::fmt::Write;

const LEFT: f64 = 70.0;
const TOP: f64 = 60.0;
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;

/// What candidates are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// SQNR of the outputs.
    Decibels,
    /// Right answers.
    Percent,
}

impl Scale {
    fn of(self, c: &Candidate) -> f64 {
        match self {
            Scale::Decibels => -10.0 * c.error.max(1e-20).log10(),
            Scale::Percent => 100.0 * c.accuracy.unwrap_or(0.0),
        }
    }

    /// Title, unit, and the distance of lines.
    fn words(self) -> (&'static str, &'static str, f64) {
        match self {
            Scale::Decibels => ("SQNR of the outputs in dB", "dB", 10.0),
            Scale::Percent => ("right answers in percent, but for the chosen one as predicted", "%", 1.0),
        }
    }
}

/// An SVG document. Higher is better, and so is further left.
pub fn front_svg(title: &str, scale: Scale, front: &[Candidate], uniform: &[Candidate], best: &Candidate) -> String {
    let all = || front.iter().chain(uniform).chain([best]);
    let fold = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)))
    };
    let (least, most) = fold(&mut all().map(|c| c.flash as f64));
    let (what, unit, line) = scale.words();
    let (low, high) = fold(&mut all().map(|c| scale.of(c)));
    // At most a dozen lines.
    let line = line * ((high - low) / line / 12.0).ceil().max(1.0);
    let (low, high) = ((low / line).floor() * line, (high / line).ceil() * line);
    let (w, h) = (LEFT + WIDTH + 40.0, TOP + HEIGHT + 60.0);
    let at = |c: &Candidate| {
        let x = LEFT + WIDTH * (c.flash as f64 - least) / (most - least).max(1.0);
        (x, TOP + HEIGHT * (high - scale.of(c)) / (high - low).max(1.0))
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{w}\" height=\"{h}\" fill=\"white\"/>\n<text x=\"20\" y=\"24\" font-size=\"16\">{}: bits of layers</text>\n\
         <text x=\"20\" y=\"42\" fill=\"#555\">{what}, against the bytes of the file</text>\n",
        escape(title)
    );
    for i in 0..=((high - low) / line).round() as usize {
        let (value, y) = (high - line * i as f64, TOP + HEIGHT * line * i as f64 / (high - low).max(1.0));
        let _ = writeln!(svg, "<path d=\"M{LEFT} {y:.1}h{WIDTH}\" stroke=\"#ddd\"/>");
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{value}</text>",
            LEFT - 8.0,
            y + 4.0
        );
    }
    for i in 0..=4 {
        let (bytes, x) = (least + (most - least) * i as f64 / 4.0, LEFT + WIDTH * i as f64 / 4.0);
        let y = TOP + HEIGHT + 18.0;
        let text = grouped(bytes as u64);
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\" fill=\"#555\">{text} B</text>");
    }
    let points: Vec<String> = front.iter().map(|c| format!("{:.1},{:.1}", at(c).0, at(c).1)).collect();
    let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"#2563eb\"/>", points.join(" "));
    for c in front {
        let _ = writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"#2563eb\"/>", at(c).0, at(c).1);
    }
    for c in uniform {
        let (x, y) = at(c);
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"7\" height=\"7\" fill=\"#d97706\"/>",
            x - 3.5,
            y - 3.5
        );
        let label = c.bits.iter().copied().min().unwrap_or(0);
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#92400e\">{label} bits</text>", x - 10.0, y + 17.0);
    }
    let (x, y) = at(best);
    let _ = writeln!(
        svg,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"6\" fill=\"none\" stroke=\"#dc2626\" stroke-width=\"2\"/>"
    );
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#dc2626\" text-anchor=\"{}\">chosen: {} B, {:.1} {unit}</text>",
        if x < LEFT + WIDTH / 2.0 { x + 10.0 } else { x - 10.0 },
        y - 10.0,
        if x < LEFT + WIDTH / 2.0 { "start" } else { "end" },
        grouped(best.flash),
        scale.of(best)
    );
    for (i, (name, colour)) in
        [("best of all mixtures", "#2563eb"), ("all layers alike", "#d97706")].into_iter().enumerate()
    {
        let (x, y) = (LEFT + 170.0 * i as f64, h - 12.0);
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"{:.1}\" width=\"9\" height=\"9\" fill=\"{colour}\"/>", y - 8.5);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\">{name}</text>", x + 14.0);
    }
    svg + "</svg>\n"
}
