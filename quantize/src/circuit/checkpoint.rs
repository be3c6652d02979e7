//! A circuit and how far it was trained, as bytes: little-endian, parameters as 32-bit floats. For training that may stop and go on; the coder's
//! circuits are integers, see [`codec`](super::codec).

use super::inputs::{Component, Family, Inputs};
use super::{Circuit, Region};
use crate::files;
use std::path::Path;

const MAGIC: &[u8; 8] = b"PITHPC01";

/// Writes to a temporary name beside `path`, then renames: an interrupted write leaves the old file.
pub fn save(path: &Path, circuit: &Circuit, epochs: usize) -> std::io::Result<()> {
    std::fs::create_dir_all(files::folder(path))?;
    files::write_whole(path, &emit(circuit, epochs))
}

/// What [`save`] wrote; none if there is no file.
pub fn load(path: &Path) -> Result<Option<(Circuit, usize)>, String> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    let bad = || format!("{} is not a checkpoint of this version; remove it to begin anew", path.display());
    let (circuit, epochs) = parse(&bytes).ok_or_else(bad)?;
    circuit.check().map_err(|what| format!("{} ({what})", bad()))?;
    Ok(Some((circuit, epochs)))
}

/// The bytes.
pub fn emit(circuit: &Circuit, epochs: usize) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    numbers(&mut out, &[epochs, circuit.variables, circuit.regions.len()]);
    for r in &circuit.regions {
        let (kind, components) = match &r.inputs {
            Inputs::Categorical => (0, 0),
            Inputs::Parametric { family, components, .. } => (1 + *family as usize, *components),
        };
        let variable = r.variable.map_or(0, |v| v + 1);
        numbers(&mut out, &[variable, r.units, r.above, r.size, r.table.len(), kind, components]);
        if let Inputs::Parametric { params, .. } = &r.inputs {
            params.iter().for_each(|c| floats(&mut out, &[c.share, c.location, c.scale]));
        }
        floats(&mut out, &r.table);
        floats(&mut out, &r.weights);
    }
    out
}

/// The circuit and its epochs; none if the bytes are cut off or not of this version.
pub fn parse(bytes: &[u8]) -> Option<(Circuit, usize)> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let [epochs, variables, regions] = take(&mut rest)?;
    let mut circuit = Circuit { variables, regions: Vec::new() };
    for _ in 0..regions {
        let [variable, units, above, size, table, kind, components] = take(&mut rest)?;
        let count = units.checked_mul(components)?;
        let inputs = match kind.checked_sub(1) {
            None => Inputs::Categorical,
            Some(family) => Inputs::Parametric {
                family: *[Family::Laplace, Family::Gaussian, Family::Logistic].get(family)?,
                components: Some(components).filter(|&c| c > 0)?,
                params: take_floats(&mut rest, count.checked_mul(3)?)?
                    .chunks_exact(3)
                    .map(|c| Component { share: c[0], location: c[1], scale: c[2] })
                    .collect(),
            },
        };
        let table = take_floats(&mut rest, table)?;
        let weights = take_floats(&mut rest, above.checked_mul(units.checked_next_multiple_of(super::dense::LANES)?)?)?;
        circuit.regions.push(Region { variable: variable.checked_sub(1), units, above, size, inputs, table, weights });
    }
    rest.is_empty().then_some((circuit, epochs))
}

fn numbers(out: &mut Vec<u8>, numbers: &[usize]) {
    numbers.iter().for_each(|&n| out.extend((n as u32).to_le_bytes()));
}

fn floats(out: &mut Vec<u8>, floats: &[f32]) {
    out.extend(floats.iter().flat_map(|x| x.to_le_bytes()));
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[usize; N]> {
    let mut numbers = [0; N];
    for n in &mut numbers {
        let (word, rest) = bytes.split_first_chunk()?;
        *n = u32::from_le_bytes(*word) as usize;
        *bytes = rest;
    }
    Some(numbers)
}

fn take_floats(bytes: &mut &[u8], n: usize) -> Option<Vec<f32>> {
    let (floats, rest) = bytes.split_at_checked(n.checked_mul(4)?)?;
    *bytes = rest;
    Some(floats.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
}
