//! A file of several precisions: each packed behind the coarser ones, its weights coded given theirs where that is smaller.

use super::coded::{Code, Matrix, Residency};
use super::{PackError, PackOptions, Packed, pack_behind};
use crate::circuit::weights::refine;
use crate::lower::Program;
use pith::format::ALIGN;
use std::collections::BTreeMap;

/// What a finer precision stands behind.
pub(super) struct Coarser<'a> {
    /// The file up to here, to a multiple of [`ALIGN`].
    pub file: &'a [u8],
    /// Of the last model in it.
    pub checksum: u32,
    /// Its coded matrices by the names of their operators, with the constants that hold them.
    matrices: BTreeMap<&'a str, (&'a Matrix, u16)>,
}

impl Coarser<'_> {
    /// The code of an operator's weights given its coarser ones; none if there are none of the same shape, or the two are unrelated.
    pub(super) fn refine(&self, name: &str, fine: &Matrix) -> Option<Code> {
        let &(coarse, refines) = self.matrices.get(name).filter(|(coarse, _)| coarse.shape == fine.shape)?;
        Some(Code { bytes: refine(&coarse.weights, &fine.weights, fine.shape)?, refines })
    }
}

/// Packs one program for each precision, the coarsest first, into one file. Names are only in the first. Weights must be coded
/// ([`super::CompressOptions::level`] above 0), and not in tiles.
pub fn pack_precisions(
    programs: Vec<Program>,
    options: PackOptions,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Result<Vec<u8>, PackError> {
    if options.compress.level == 0 || options.compress.residency == Residency::Tile {
        return Err(PackError::Precisions("their weights are coded and decoded once"));
    }
    if programs.is_empty() || programs.len() > pith::precisions::MAX_PRECISIONS {
        return Err(PackError::Precisions("there are one to four"));
    }
    let mut file = Vec::new();
    let mut last: Option<(Packed, Vec<Option<Matrix>>)> = None;
    for program in programs {
        let matrices = program.ops.iter().map(|spec| Matrix::of(&program, &spec.record)).collect();
        file.resize(file.len().next_multiple_of(ALIGN), 0);
        let coarser = last.as_ref().map(|(packed, matrices)| Coarser {
            file: &file,
            checksum: packed.checksum(),
            matrices: coded(packed, matrices),
        });
        let options = PackOptions { strip_names: options.strip_names || coarser.is_some(), ..options };
        let packed = pack_behind(coarser.as_ref(), program, options, progress)?;
        file.extend_from_slice(&packed.bytes);
        last = Some((packed, matrices));
    }
    Ok(file)
}

/// The matrices of a packed model that are coded.
fn coded<'a>(packed: &'a Packed, matrices: &'a [Option<Matrix>]) -> BTreeMap<&'a str, (&'a Matrix, u16)> {
    let of = |(spec, matrix): (&'a crate::lower::OpSpec, &'a Option<Matrix>)| {
        let id = spec.record.weights()?;
        let is_coded = packed.program.constants[id as usize].record.is_coded();
        Some((spec.name.as_str(), (matrix.as_ref().filter(|_| is_coded)?, id)))
    };
    packed.program.ops.iter().zip(matrices).filter_map(of).collect()
}
