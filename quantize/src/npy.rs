//! Arrays in `.npy` and `.npz` files, read with distrust: no size in a header is believed before the bytes are there.

use half::f16;
use ndarray::{ArrayD, IxDyn};
use std::io::{Read, Write};
use std::path::Path;

/// An array and its element type.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Elements as 32-bit floats.
    pub values: ArrayD<f32>,
    /// NumPy's name of the stored type without byte order: `f4`, `u1`, `i8`, ...
    pub kind: String,
}

/// What is wrong with a file, without its name.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum NpyError {
    #[error("cannot read it: {0}")]
    Io(#[from] std::io::Error),
    #[error("not an npz file (a zip of npy arrays): {0}")]
    Zip(#[from] zip::result::ZipError),
    #[error("array '{name}' is not in npy format ({what})")]
    Format { name: String, what: &'static str },
    #[error("array '{name}' has dtype {kind}; use float32, float16, float64, or an integer type")]
    Kind { name: String, kind: String },
    #[error("array '{name}' of shape {shape:?} needs {needed} bytes of data, the file holds {given}")]
    Length { name: String, shape: Vec<usize>, needed: u128, given: usize },
}

/// Largest array that is read: 4 GiB of stored elements.
const LIMIT: u64 = 1 << 32;

/// Arrays of an `.npz` (by name, in the file's order) or the one of an `.npy` (named `x`).
pub fn read(path: &Path) -> Result<Vec<(String, Array)>, NpyError> {
    let mut file = std::fs::File::open(path)?;
    let mut magic = [0; 6];
    let is_npy = file.read_exact(&mut magic).is_ok() && magic == *b"\x93NUMPY";
    std::io::Seek::rewind(&mut file)?;
    if is_npy {
        let mut bytes = Vec::new();
        file.take(LIMIT).read_to_end(&mut bytes)?;
        return Ok(vec![("x".into(), parse("x", &bytes)?)]);
    }
    let mut archive = zip::ZipArchive::new(file)?;
    let mut arrays = Vec::new();
    for i in 0..archive.len() {
        let entry = archive.by_index(i)?;
        let name = entry.name().trim_end_matches(".npy").to_string();
        let mut bytes = Vec::new();
        entry.take(LIMIT).read_to_end(&mut bytes)?;
        match parse(&name, &bytes) {
            // Names and other strings that some writers add.
            Err(NpyError::Kind { kind, .. }) if kind.starts_with('U') || kind.starts_with('S') => {}
            array => arrays.push((name, array?)),
        }
    }
    Ok(arrays)
}

/// One array in npy format (versions 1 to 3).
fn parse(name: &str, bytes: &[u8]) -> Result<Array, NpyError> {
    let bad = |what| NpyError::Format { name: name.into(), what };
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or(bad("no magic"))?;
    let (&[major, _], rest) = rest.split_first_chunk::<2>().ok_or(bad("cut off"))?;
    let (len, rest) = match major {
        1 => rest.split_first_chunk::<2>().map(|(n, rest)| (u16::from_le_bytes(*n) as usize, rest)),
        _ => rest.split_first_chunk::<4>().map(|(n, rest)| (u32::from_le_bytes(*n) as usize, rest)),
    }
    .ok_or(bad("cut off"))?;
    let header = rest.get(..len).and_then(|h| std::str::from_utf8(h).ok()).ok_or(bad("header cut off"))?;
    let data = &rest[len..];
    let field = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, value)| value.trim_start());
    let kind = field("descr").and_then(|v| v.split('\'').nth(1)).ok_or(bad("no descr"))?;
    let fortran = field("fortran_order").is_some_and(|v| v.starts_with("True"));
    let shape = field("shape").and_then(|v| v.strip_prefix('(')?.split(')').next()).ok_or(bad("no shape"))?;
    let dims = shape.split(',').map(str::trim).filter(|d| !d.is_empty()).map(str::parse::<usize>);
    let shape: Vec<usize> = dims.collect::<Result<_, _>>().map_err(|_| bad("shape"))?;
    if kind.starts_with('>') {
        return Err(NpyError::Kind { name: name.into(), kind: format!("{kind} (big-endian)") });
    }
    let kind = kind.trim_start_matches(['<', '|', '=']).to_string();
    let width: u128 = kind.get(1..).and_then(|w| w.parse().ok()).unwrap_or(1);
    let needed = shape.iter().fold(width, |n, &d| n.saturating_mul(d as u128));
    if !kind.starts_with(['U', 'S']) && needed != data.len() as u128 {
        return Err(NpyError::Length { name: name.into(), shape, needed, given: data.len() });
    }
    let values: Vec<f32> = match kind.as_str() {
        "f4" => elements(data, f32::from_le_bytes),
        "f2" => elements(data, |b| f16::from_le_bytes(b).to_f32()),
        "f8" => elements(data, |b| f64::from_le_bytes(b) as f32),
        "u1" | "b1" => elements(data, |b: [u8; 1]| b[0] as f32),
        "i1" => elements(data, |b: [u8; 1]| b[0] as i8 as f32),
        "u2" => elements(data, |b| u16::from_le_bytes(b) as f32),
        "i2" => elements(data, |b| i16::from_le_bytes(b) as f32),
        "u4" => elements(data, |b| u32::from_le_bytes(b) as f32),
        "i4" => elements(data, |b| i32::from_le_bytes(b) as f32),
        "u8" => elements(data, |b| u64::from_le_bytes(b) as f32),
        "i8" => elements(data, |b| i64::from_le_bytes(b) as f32),
        _ => return Err(NpyError::Kind { name: name.into(), kind }),
    };
    let values = match fortran {
        false => ArrayD::from_shape_vec(IxDyn(&shape), values),
        true => {
            let reversed: Vec<usize> = shape.iter().rev().copied().collect();
            ArrayD::from_shape_vec(IxDyn(&reversed), values)
                .map(|a| a.reversed_axes().as_standard_layout().into_owned())
        }
    };
    Ok(Array { values: values.map_err(|_| bad("shape"))?, kind })
}

fn elements<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    data.chunks_exact(N).map(|chunk| <[u8; N]>::try_from(chunk).map_or(0.0, &read)).collect()
}

/// The bytes of an npy file: `descr` is NumPy's type (`<f4`, `|i1`), `data` the elements in row-major order.
pub fn encode(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let dims: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", dims.trim_end());
    let used = 10 + header.len() + 1;
    header.push_str(&" ".repeat(used.next_multiple_of(64) - used));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// The bytes of an npz file that holds these npy files.
pub fn encode_archive(arrays: &[(String, Vec<u8>)]) -> Result<Vec<u8>, NpyError> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in arrays {
        archive.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default())?;
        archive.write_all(bytes)?;
    }
    Ok(archive.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_types() {
        let bytes = encode("<f4", &[2, 1, 3], bytemuck::cast_slice(&[1f32, 2.0, 3.0, 4.0, 5.0, -6.5]));
        let array = parse("x", &bytes).unwrap();
        assert_eq!((array.values.shape(), array.values[[1, 0, 2]], array.kind.as_str()), (&[2, 1, 3][..], -6.5, "f4"));
        let half: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        assert_eq!(parse("x", &encode("<f2", &[2], &half)).unwrap().values.as_slice(), Some(&[1.5, -2.0][..]));
        assert_eq!(parse("x", &encode("|i1", &[2], &[255, 1])).unwrap().values.as_slice(), Some(&[-1.0, 1.0][..]));
    }

    #[test]
    fn hostile_headers_are_refused() {
        let huge = encode("<f4", &[1 << 40, 1 << 40], &[0; 16]);
        assert!(matches!(parse("x", &huge), Err(NpyError::Length { .. })));
        assert!(matches!(parse("x", &encode("<c8", &[1], &[0; 8])), Err(NpyError::Kind { .. })));
        let good = encode("<f4", &[4], &[0; 16]);
        for cut in 0..good.len() {
            assert!(parse("x", &good[..cut]).is_err());
        }
    }
}
