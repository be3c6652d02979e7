//! The memory plan as a picture: operators from left to right, arena bytes from bottom to top, a rectangle per tensor.

use super::grouped;
use pith::Model;
use pith::format::op::Op;
use std::fmt::Write;

/// A tensor or scratch area in time and memory.
struct Block {
    name: String,
    offset: usize,
    bytes: usize,
    first: usize,
    last: usize,
}

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 90.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 150.0;

/// An SVG document.
pub fn plan_svg(model: &Model<'_>, title: &str) -> String {
    let blocks = blocks(model);
    let ops: Vec<String> = model.ops().map(|(head, op)| label(model.op_name(&head), op.name())).collect();
    let arena = model.arena_bytes().max(1);
    let step = WIDTH / ops.len().max(1) as f64;
    let y = |byte: usize| TOP + HEIGHT * (1.0 - byte as f64 / arena as f64);
    let mut svg = String::new();
    let (w, h) = (LEFT + WIDTH + 20.0, TOP + HEIGHT + BOTTOM);
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{w}\" height=\"{h}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">{}: arena of {} bytes over {} operators</text>\n",
        escape(title),
        grouped(arena as u64),
        ops.len()
    );
    for i in 0..=4 {
        let byte = arena * i / 4;
        let at = y(byte);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\n<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            LEFT + WIDTH,
            LEFT - 8.0,
            at + 4.0,
            grouped(byte as u64)
        );
    }
    for (i, b) in blocks.iter().enumerate() {
        let (x, width) = (LEFT + step * b.first as f64, step * (b.last - b.first + 1) as f64);
        let (top, height) = (y(b.offset + b.bytes), HEIGHT * b.bytes as f64 / arena as f64);
        // Neighbours differ: the golden angle walks around the colour circle.
        let hue = (i as f64 * 137.508) % 360.0;
        let _ = write!(
            svg,
            "<g><title>{} ({} bytes at {}, operators {}..{})</title>\
             <rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"hsl({hue:.0},60%,80%)\" stroke=\"hsl({hue:.0},45%,45%)\"/>",
            escape(&b.name),
            grouped(b.bytes as u64),
            grouped(b.offset as u64),
            b.first,
            b.last
        );
        let room = (width / 6.2) as usize;
        if height >= 13.0 && room >= 4 {
            let name: String = b.name.chars().take(room).collect();
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x + 4.0,
                top + height / 2.0 + 4.0,
                escape(&name)
            );
        }
        svg.push_str("</g>\n");
    }
    for (i, name) in ops.iter().enumerate() {
        let (x, at) = (LEFT + step * (i as f64 + 0.5), TOP + HEIGHT + 14.0);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{at}\" transform=\"rotate(55 {x:.1} {at})\" font-size=\"{:.1}\">{}</text>",
            (step * 0.8).clamp(4.0, 11.0),
            escape(name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// The end of a long name says more than its beginning.
pub(super) fn label(name: &str, op: &str) -> String {
    let short = name.rsplit(['/', ';']).find(|part| !part.is_empty()).unwrap_or(op);
    short.chars().take(24).collect()
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Lifetimes from the records: a tensor lives from its writer (inputs: the start) to its last reader (outputs: the end). Tensors at the
/// same place with touching lifetimes stay separate blocks.
fn blocks(model: &Model<'_>) -> Vec<Block> {
    let count = model.ops().count();
    let mut blocks: Vec<Option<Block>> = model.tensors().iter().map(|_| None).collect();
    let mut scratch = Vec::new();
    let mut touch = |id: u16, at: usize, name: &str| {
        let Some(slot) = blocks.get_mut(id as usize) else { return };
        let tensor = model.tensor(id);
        let block = slot.get_or_insert(Block {
            name: name.into(),
            offset: tensor.offset as usize,
            bytes: tensor.len as usize,
            first: at,
            last: at,
        });
        block.last = block.last.max(at);
    };
    for port in model.inputs() {
        touch(port.tensor, 0, model.port_name(port));
    }
    for (i, (head, op)) in model.ops().enumerate() {
        let name = label(model.op_name(&head), op.name());
        op.inputs().into_iter().flatten().for_each(|id| touch(id, i, "reshaped"));
        if let Op::Concat(_, parts) = op {
            parts.iter().for_each(|p| touch(p.input, i, "reshaped"));
        }
        touch(op.output(), i, &name);
        if head.scratch_bytes > 0 {
            let (offset, bytes) = (head.scratch_offset as usize, head.scratch_bytes as usize);
            scratch.push(Block { name: format!("{name} scratch"), offset, bytes, first: i, last: i });
        }
    }
    for port in model.outputs() {
        touch(port.tensor, count.saturating_sub(1), model.port_name(port));
    }
    blocks.into_iter().flatten().chain(scratch).collect()
}
