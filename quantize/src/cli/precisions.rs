//! Files of several precisions: built as one, and one of them chosen by other verbs.

use super::Failure;
use super::eval::accuracy_of;
use super::output::{Progress, write_whole};
use crate::build::{BuildOptions, Built};
use crate::data::Set;
use crate::execute::Runner;
use crate::graph::eval;
use crate::pack::{CompressOptions, ModelFile, PackOptions, Residency, pack_precisions};
use crate::recipe::{Compress, Recipe};
use crate::report::{grouped, json, table};
use crate::target::Target;
use pith::Model;
use pith::precisions::MAX_PRECISIONS;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// Metadata of a precision: its bits, and its share of right answers.
const PRECISION: &str = "precision";
const ACCURACY: &str = "accuracy";

/// One precision of a file.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Precision {
    /// Bits of a weight.
    bits: Option<u8>,
    /// Of the file up to this precision, which is a file by itself.
    file_bytes: u64,
    /// What it takes decoded.
    decoded_bytes: u64,
    arena_bytes: u64,
    /// Layers whose weights are told given the coarser ones.
    refined_layers: usize,
    /// Share of right answers, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
}

/// `build --elastic --json`.
#[derive(Serialize)]
struct Report {
    file_bytes: usize,
    float_accuracy: Option<f64>,
    precisions: Vec<Precision>,
}

/// How weights of these precisions are coded: never in tiles, since a row needs the rows of all coarser precisions.
pub(super) fn options(bits: &[u8], compress: &Compress, target: &Target) -> Result<CompressOptions, Failure> {
    if bits.iter().collect::<BTreeSet<_>>().len() > MAX_PRECISIONS {
        return Err(Failure::new(format!("--elastic takes up to {MAX_PRECISIONS} widths, {} are given", bits.len())));
    }
    if compress.max_decode_us.is_some() {
        return Err(Failure::new(
            "--max-decode-us is for one precision; with --elastic a lower --compress level decodes faster",
        ));
    }
    if compress.decode == Some(Residency::Tile) {
        return Err(Failure::new("--elastic decodes a precision once: use --decode ram or flash"));
    }
    let level = if compress.level == 0 { crate::circuit::weights::DEFAULT_LEVEL } else { compress.level };
    let compress = Compress { level, decode: Some(compress.decode.unwrap_or(Residency::Ram)), ..compress.clone() };
    Ok(compress.options(target)?)
}

/// Builds the network at each of these bits into one file; `one` builds it by a recipe. Returns the text to print.
pub(super) fn build(
    bits: &[u8],
    recipe: &Recipe,
    pack: PackOptions,
    (target, output, as_json): (&Target, &Path, bool),
    test: Option<&Set>,
    one: &dyn Fn(&Recipe, BuildOptions) -> Result<Built, Failure>,
    shrink: bool,
) -> Result<String, Failure> {
    let progress = Progress::new();
    let bits: BTreeSet<u8> = bits.iter().copied().collect();
    let mut programs = Vec::new();
    let mut float_accuracy = None;
    for bits in bits {
        let mut recipe = recipe.clone();
        recipe.quantize.weight_bits = bits;
        // Raw and in no target's order: the whole file is packed below.
        let plain = PackOptions { compress: CompressOptions::NONE, sparse: false, ..PackOptions::default() };
        let built = one(&recipe, BuildOptions { shrink, pack: plain })?;
        let mut program = built.packed.program;
        program.metadata.push((PRECISION.into(), bits.to_string()));
        if let Some(test) = test {
            let file = ModelFile::new(&built.packed.bytes);
            let model = super::input::parse_packed(output, &file, None)?;
            let step = || progress.advance("testing", test.samples.len());
            let accuracy = accuracy_of(test, || Runner::new(&model), |runner, sample| runner.run(sample), &step);
            let accuracy = accuracy
                .ok_or_else(|| Failure::new("the test set has no integer labels 'y'; leave --test out or add them"))?;
            program.metadata.push((ACCURACY.into(), format!("{accuracy:.4}")));
            // Of the finest: sub-networks of a supernet differ in their batch norms.
            float_accuracy =
                accuracy_of(test, || (), |(), sample| eval::run(&built.graph, sample).unwrap_or_default(), &step);
        }
        programs.push(program);
    }
    let packed = pack_precisions(programs, pack, &|step, n| progress.advance(step, n))?;
    progress.finish();
    let file = ModelFile::new(&packed);
    let precisions = table_of(&file, output)?;
    fits(&file, pack.compress, target)?;
    write_whole(output, &packed)?;
    if as_json {
        return Ok(json(&Report { file_bytes: packed.len(), float_accuracy, precisions }));
    }
    let mut text = text(&precisions);
    if let Some(accuracy) = float_accuracy {
        text.push_str(&format!(
            "\nfloat    {:.2} % on {} samples\n",
            100.0 * accuracy,
            test.map_or(0, |t| t.samples.len())
        ));
    }
    text.push_str(&format!("wrote    {}\n", output.display()));
    Ok(text)
}

/// The whole file must fit the flash of a board, its coarsest precision the RAM.
fn fits(file: &ModelFile, compress: CompressOptions, target: &Target) -> Result<(), Failure> {
    let Some(Ok(coarsest)) = pith::precisions(file.as_bytes()).next() else { return Ok(()) };
    let (flash, ram) = compress.memory(&coarsest);
    let finer = file.as_bytes().len() as u64 - u64::from(coarsest.header().file_bytes);
    match target.exceeded(flash + finer, ram) {
        Some(what) => Err(Failure::unmet(format!("{what}; name fewer bits, or prune filters (--macs)"))),
        None => Ok(()),
    }
}

/// What a file's precisions are; a single one if it is an ordinary file.
pub(super) fn table_of(file: &ModelFile, path: &Path) -> Result<Vec<Precision>, Failure> {
    let mut models = pith::precisions(file.as_bytes());
    let mut all = Vec::new();
    while let Some(model) = models.next() {
        let model = model.map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
        all.push(Precision {
            bits: bits_of(&model),
            file_bytes: models.bytes() as u64,
            decoded_bytes: model.decoded_bytes() as u64,
            arena_bytes: model.arena_bytes() as u64,
            refined_layers: model.constants().iter().filter(|c| c.refines != pith::format::NONE).count(),
            accuracy: noted(&model, ACCURACY).and_then(|text| text.parse().ok()),
        });
    }
    Ok(all)
}

/// For a reader.
pub(super) fn text(precisions: &[Precision]) -> String {
    let row = |p: &Precision| {
        vec![
            p.bits.map_or("?".into(), |bits| format!("{bits} bits")),
            grouped(p.file_bytes),
            grouped(p.decoded_bytes),
            grouped(p.arena_bytes),
            p.refined_layers.to_string(),
            p.accuracy.map_or(String::new(), |a| format!("{:.2}", 100.0 * a)),
        ]
    };
    let head = ["precision", "file up to it, B", "decoded, B", "arena, B", "layers refined", "accuracy, %"];
    table(&head, &precisions.iter().map(row).collect::<Vec<_>>())
}

fn noted<'m>(model: &Model<'m>, key: &str) -> Option<&'m str> {
    model.metadata().lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

fn bits_of(model: &Model<'_>) -> Option<u8> {
    noted(model, PRECISION).and_then(|bits| bits.parse().ok())
}

/// An ONNX file has no precisions to choose from.
pub(super) fn refuse(bits: Option<u8>) -> Result<(), Failure> {
    match bits {
        Some(_) => Err(Failure::new("--precision chooses from a .pith file; the model given is an ONNX file")),
        None => Ok(()),
    }
}

/// The precision of these bits, or the finest.
pub(super) fn choose<'m>(path: &Path, file: &'m ModelFile, bits: Option<u8>) -> Result<Model<'m>, Failure> {
    let shown = path.display();
    let mut models = Vec::new();
    for model in pith::precisions(file.as_bytes()) {
        models.push(model.map_err(|e| Failure::new(format!("{shown}: {e}")))?);
    }
    let found = match bits {
        None => models.last(),
        Some(bits) => models.iter().find(|model| bits_of(model) == Some(bits)),
    };
    found.copied().ok_or_else(|| {
        let known: Vec<String> = models.iter().filter_map(bits_of).map(|bits| bits.to_string()).collect();
        let has = if known.is_empty() { "it has one precision".into() } else { format!("it has {}", known.join(", ")) };
        Failure::new(format!("{shown}: no precision of {} bits; {has}", bits.unwrap_or(0)))
    })
}
