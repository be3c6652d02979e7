//! Coded weights as a picture: for every layer with weights a bar of what it takes, before one of what it would take raw.

use super::grouped;
use super::layers::{Layer, Summary, shortened};
use super::plan_svg::escape;
use std::fmt::Write;

/// Characters of a layer's name: its end, which tells layers of a kind apart.
const LABEL: usize = 28;
const BAR: f64 = 16.0;
const STEP: f64 = 24.0;
const LEFT: f64 = 190.0;
const WIDTH: f64 = 640.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 64.0;

/// An SVG document.
pub fn code_svg(summary: &Summary, title: &str) -> String {
    let layers: Vec<&Layer> = summary.layers.iter().filter(|l| l.weight_bytes > 0).collect();
    let raw = |l: &Layer| l.code.as_ref().map_or(l.weight_bytes, |code| code.raw_bytes);
    let most = layers.iter().map(|l| raw(l)).max().unwrap_or(1).max(1);
    let (all_raw, all): (u64, u64) = (layers.iter().map(|l| raw(l)).sum(), layers.iter().map(|l| l.weight_bytes).sum());
    let (w, h) = (LEFT + WIDTH + RIGHT, TOP + STEP * layers.len() as f64 + 20.0);
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{w}\" height=\"{h}\" fill=\"white\"/>\n\
         <text x=\"20\" y=\"24\" font-size=\"16\">{}: weights of {} bytes in {}</text>\n\
         <rect x=\"20\" y=\"36\" width=\"12\" height=\"12\" fill=\"hsl(210,40%,85%)\"/><text x=\"38\" y=\"46\">raw</text>\n\
         <rect x=\"80\" y=\"36\" width=\"12\" height=\"12\" fill=\"hsl(210,60%,50%)\"/><text x=\"98\" y=\"46\">stored</text>\n",
        escape(title),
        grouped(all_raw),
        grouped(all)
    );
    for (i, layer) in layers.iter().enumerate() {
        let y = TOP + STEP * i as f64;
        let wide = |bytes: u64| WIDTH * bytes as f64 / most as f64;
        let note = match &layer.code {
            Some(code) => format!(
                "{} of {} B, {:.2} bits, {}",
                grouped(code.coded_bytes),
                grouped(code.raw_bytes),
                code.bits_per_weight,
                code.decode
            ),
            None => format!("{} B, raw", grouped(layer.weight_bytes)),
        };
        let _ = writeln!(
            svg,
            "<g><title>{}</title><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"hsl(210,40%,85%)\"/>\
             <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"hsl(210,60%,50%)\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{note}</text></g>",
            escape(&layer.name),
            LEFT - 8.0,
            y + 12.0,
            escape(&shortened(&layer.name, LABEL)),
            wide(raw(layer)),
            y + 4.0,
            wide(layer.weight_bytes),
            BAR - 8.0,
            LEFT + wide(raw(layer).max(layer.weight_bytes)) + 6.0,
            y + 12.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}
