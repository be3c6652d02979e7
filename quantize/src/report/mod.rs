//! Tables for people and JSON for scripts.

pub mod code;
pub mod code_svg;
pub mod front_svg;
pub mod layers;
pub mod plan_svg;
pub mod prune_svg;
pub mod sparse;

use serde::Serialize;

/// Rows under a head; columns are as wide as their widest cell, numbers align right.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width =
        |c: usize| rows.iter().map(|r| r[c].chars().count()).chain([head[c].chars().count()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let is_number =
        |c: usize| rows.iter().all(|r| r[c].chars().all(|ch| ch.is_ascii_digit() || " .,%-+x".contains(ch)));
    let line = |cells: Vec<&str>| {
        let cell = |(c, text): (usize, &&str)| match is_number(c) && c > 0 {
            true => format!("{text:>w$}", w = widths[c]),
            false => format!("{text:<w$}", w = widths[c]),
        };
        let joined: Vec<String> = cells.iter().enumerate().map(cell).collect();
        format!("{}\n", joined.join("  ").trim_end())
    };
    let mut text = line(head.to_vec());
    text.push_str(&format!("{}\n", "-".repeat(widths.iter().sum::<usize>() + 2 * (head.len().max(1) - 1))));
    rows.iter().for_each(|r| text.push_str(&line(r.iter().map(String::as_str).collect())));
    text
}

/// `12345678` as `12,345,678`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let from_end = |i: usize| digits.len() - i;
    digits
        .chars()
        .enumerate()
        .map(|(i, c)| if i > 0 && from_end(i) % 3 == 0 { format!(",{c}") } else { c.to_string() })
        .collect()
}

/// `[32, 32, 16]` as `32x32x16`.
pub fn shape(dims: &[usize]) -> String {
    dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// JSON with a final newline; plain data cannot fail to serialize.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).map_or_else(|e| format!("{{\"error\": \"{e}\"}}\n"), |text| text + "\n")
}
