//! Whole networks with coded weights: the same outputs in every residency, for every layout, on every instruction set of the machine. And code
//! itself, read by a second decoder.

use crate::decoder::{decode, decode_refined, decode_stages};
use crate::firmware::{Network, network, networks, samples};
use pith::circuit::{Coded, Shape};
use pith::format::crc32::crc32;
use pith::format::stages::Fields;
use pith::format::tensor::Constant;
use pith::{Isa, Model};
use quantize::build::{BuildOptions, build, input_slots, prepend_preprocess};
use quantize::circuit::weights::{Weights, encode, narrow, refine};
use quantize::data;
use quantize::execute::{Runner, quantize};
use quantize::graph::simplify;
use quantize::onnx::import;
use quantize::pack::{Arena, CompressOptions, ModelFile, PackOptions, Residency, pack};
use quantize::recipe::Recipe;

#[test]
fn networks_are_the_same_in_every_residency() {
    for (path, set, scale) in networks() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        for weight_bits in [8, 4] {
            let mut recipe = Recipe::default();
            recipe.preprocess.scale = scale;
            recipe.quantize.weight_bits = weight_bits;
            let graph = prepend_preprocess(simplify(import(&path).unwrap()), &recipe.preprocess).unwrap();
            let set = data::load(&set, &input_slots(&graph), None, usize::MAX).unwrap();
            let samples = samples(&set.samples);
            let built = build(graph, &samples, &set.is_u8, &recipe, BuildOptions::default(), &|_, _| ()).unwrap();
            let program = &built.packed.program;
            for isa in [Isa::Generic, Isa::ArmV6M, Isa::ArmDsp, Isa::Helium] {
                let raw = ModelFile::new(
                    &pack(program.clone(), PackOptions { isa, ..PackOptions::default() }).unwrap().bytes,
                );
                let raw = Model::parse(raw.as_bytes()).unwrap();
                let inputs: Vec<Vec<i8>> =
                    raw.inputs().iter().zip(&samples[0]).map(|(port, x)| quantize(port, x)).collect();
                let expected = Runner::new(&raw).run_raw(&inputs);
                for residency in [Residency::Ram, Residency::Flash, Residency::Tile] {
                    let compress = CompressOptions { level: 1, residency, max_instructions: None };
                    let options = PackOptions { isa, compress, ..PackOptions::default() };
                    let packed = pack(program.clone(), options).unwrap();
                    let file = ModelFile::new(&packed.bytes);
                    let model = Model::parse(file.as_bytes()).unwrap();
                    let coded = model.constants().iter().filter(|c| c.is_coded()).count();
                    let in_tiles = model.constants().iter().filter(|c| c.is_in_tiles()).count();
                    let bytes = |model: &Model<'_>| model.constants().iter().map(|c: &Constant| c.bytes).sum::<u32>();
                    println!(
                        "{name}, {weight_bits} bits, {isa:?}, {residency:?}: {coded} coded, {in_tiles} in tiles, {} of {} B",
                        bytes(&model),
                        bytes(&raw)
                    );
                    assert!(bytes(&model) <= bytes(&raw), "{name}: coding made weights larger");
                    for set in Isa::available().chain([Isa::Generic]) {
                        let got = Runner::on(&model, set).run_raw(&inputs);
                        assert_eq!(got, expected, "{name}, {weight_bits} bits for {isa:?} in {residency:?} on {set:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn damaged_code_is_found_or_harmless() {
    let (path, set, scale) = networks().remove(0);
    let Network { built, inputs, .. } = network(&path, &set, scale, 1);
    for (level, residency) in [(1, Residency::Ram), (1, Residency::Tile), (6, Residency::Flash), (6, Residency::Tile)] {
        let compress = CompressOptions { level, residency, max_instructions: None };
        let options = PackOptions { isa: Isa::ArmDsp, compress, ..PackOptions::default() };
        let good = pack(built.packed.program.clone(), options).unwrap().bytes;
        let file = ModelFile::new(&good);
        let model = Model::parse(file.as_bytes()).unwrap();
        let start = model.header().weights_offset;
        let codes: Vec<_> =
            model.constants().iter().filter(|c| c.is_coded()).map(|c| (c.offset + start, c.bytes)).collect();
        let (mut parsed, mut found, mut state) = (0, 0, 7u64);
        let mut random = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        for _ in 0..1000 {
            let mut bytes = good.clone();
            let (offset, len) = codes[random(codes.len())];
            // Headers and parameters are short; half of the damage goes there.
            let within = if random(2) == 0 { 24.min(len as usize) } else { len as usize };
            bytes[offset as usize + random(within)] = random(256) as u8;
            let crc = crc32(&bytes[16..]).to_le_bytes();
            bytes[12..16].copy_from_slice(&crc);
            let file = ModelFile::new(&bytes);
            let Ok(coded) = Model::parse(file.as_bytes()) else { continue };
            parsed += 1;
            let mut scratch = vec![0; coded.decode_scratch_bytes()];
            let undamaged = coded.verify(&mut scratch).is_ok();
            found += usize::from(!undamaged);
            let mut decoded = Arena::new(coded.decoded_bytes(), 0);
            let Ok(model) = coded.decode_into(decoded.bytes_mut(), &mut scratch) else { continue };
            // Tiles are not looked at before: whatever they decode to is run.
            Runner::on(&model, Isa::Generic).run_raw(&inputs[0]);
        }
        println!("level {level} in {residency:?}: {found} of {parsed} damaged codes are found");
        // A model that holds all values equally probable makes no wrong code, only other weights: there the file's checksum is alone.
        assert!(found > 0, "nothing of {parsed}");
    }
}

/// Weights as networks have them: bell-shaped, with scales of rows and channels, neighbours alike, scaled to the largest of a row, and pruned.
fn weights(random: &mut impl FnMut() -> f64, shape: Shape, bits: u8, pruned: &str) -> Vec<i8> {
    let mut bell = || (0..6).map(|_| random()).sum::<f64>() - 3.0;
    let channels: Vec<f64> = (0..shape.channels).map(|_| bell().exp2()).collect();
    let limit = f64::from((1u32 << (bits - 1)) - 1);
    let mut all = Vec::new();
    for r in 0..shape.rows {
        let mut last = vec![0.0; shape.channels];
        let mut row = Vec::new();
        for _ in 0..shape.positions {
            for (last, scale) in last.iter_mut().zip(&channels) {
                *last = 0.6 * *last + bell() * scale;
                row.push(*last);
            }
        }
        let largest = row.iter().fold(1e-9f64, |m, w| m.max(w.abs()));
        all.extend(row.iter().enumerate().map(|(i, w)| match pruned {
            "rows" if r % 2 == 0 => 0,
            "channels" if (i % shape.channels).is_multiple_of(3) => 0,
            "small" if w.abs() < 0.3 * largest => 0,
            _ => (w / largest * limit).round() as i8,
        }));
    }
    all
}

#[test]
fn a_decoder_written_from_the_format_agrees() {
    let mut state = 7u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as f64 / (1u64 << 31) as f64
    };
    let shapes = [(1, 1, 1), (7, 1, 1), (1, 1, 40), (6, 9, 8), (12, 25, 3), (20, 1, 33), (24, 9, 1), (3, 10, 4)];
    let mut models = std::collections::BTreeMap::new();
    for (rows, positions, channels) in shapes {
        let shape = Shape { rows, positions, channels };
        for bits in 2..=8 {
            for pruned in ["", "rows", "channels", "small"] {
                let weights = weights(&mut random, shape, bits, pruned);
                for level in [0, 1, 2, 5, 9] {
                    let code = encode(&weights, shape, bits, level);
                    let what = format!("{shape:?}, {bits} bits, {pruned}, level {level}");
                    let coded = Coded::new_checked(&code, bits, weights.len()).expect(&what);
                    assert_eq!(decode(&code, bits.into(), weights.len()).as_ref(), Some(&weights), "{what}");
                    *models.entry((coded.model(), pruned)).or_insert(0) += 1;
                }
            }
        }
    }
    println!("{models:?}");
    for pruned in ["", "rows", "channels", "small"] {
        assert!(["classes", "predictive"].iter().all(|model| models.contains_key(&(model, pruned))), "{models:?}");
    }
}

#[test]
fn numbers_of_a_few_bits_are_what_the_format_says() {
    let shape = Shape { rows: 5, positions: 9, channels: 3 };
    for (bits, wide) in [(2, 4), (3, 4), (3, 8), (5, 8), (6, 8), (7, 8)] {
        let half = 1 << (bits - 1);
        for zero_points in [[0; 5], [0, half - 1, -half, 1, -2]] {
            let level = |i: usize| (i as i32 * 37 % (2 * half)) - half;
            let weights: Vec<i8> = (0..135).map(|i| (level(i) - zero_points[i / 27]) as i8).collect();
            let zero_points = zero_points.map(|zero| zero as i8);
            let code = narrow(&Weights { values: &weights, shape, bits: wide }, bits, &zero_points);
            let told = 135 + if zero_points == [0; 5] { 0 } else { 5 };
            let (least, size) = (told * usize::from(bits) / 8, code.len());
            let coded = Coded::new_checked(&code, wide, weights.len()).expect("a code");
            assert_eq!((coded.model(), coded.state_words()), ("narrow", 0));
            assert!((least..least + 12).contains(&size), "{bits} bits: {size} B for {least}");
            // Levels that the decoded width may not hold.
            let narrower = bits + u8::from(zero_points != [0; 5]) - 1;
            assert!(Coded::new_checked(&code, narrower, weights.len()).is_err(), "{bits} bits in {narrower}");
            assert_eq!(decode(&code, wide.into(), weights.len()), Some(weights));
        }
    }
}

#[test]
fn output_stages_read_from_the_format_agree() {
    for (path, set, scale) in networks() {
        let Network { built, .. } = network(&path, &set, scale, 1);
        let stages = built.packed.program.constants.iter().filter(|c| c.record.kind == Constant::KIND_CHANNELS);
        let (mut raw, mut packed) = (0, 0);
        for constant in stages {
            let n = constant.record.len as usize;
            let word = |i: usize| i32::from_le_bytes(constant.bytes[4 * i..4 * i + 4].try_into().unwrap());
            let stage = |i: usize| (word(i), word(n + i), constant.bytes[8 * n + i]);
            let fields = Fields::of(n, stage).expect("what is lowered packs");
            let mut bytes = vec![0; fields.bytes(n)];
            fields.emit(n, stage, &mut bytes);
            for (i, read) in decode_stages(&bytes, n).into_iter().enumerate() {
                let (bias, multiplier, shift) = stage(i);
                assert_eq!(read, (bias.into(), multiplier.into(), shift.into()), "{}, channel {i}", path.display());
            }
            (raw, packed) = (raw + constant.bytes.len(), packed + bytes.len());
        }
        println!("{}: {packed} of {raw} B of output stages", path.display());
        assert!(2 * packed < raw, "{packed} of {raw} B");
    }
}

#[test]
fn a_refiner_written_from_the_format_agrees() {
    let mut state = 11u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as f64 / (1u64 << 31) as f64
    };
    let mut refined = 0;
    for (rows, positions, channels) in [(1, 1, 1), (7, 1, 1), (6, 9, 8), (12, 25, 3), (24, 9, 1)] {
        let shape = Shape { rows, positions, channels };
        for (coarse_bits, fine_bits) in [(2, 3), (2, 8), (4, 8), (5, 6)] {
            let (mut coarse, mut fine) = (Vec::new(), Vec::new());
            for _ in 0..rows {
                // Every row has steps of its own, and half of them are turned around.
                let (step, sign) = (0.5 + random(), if random() < 0.5 { -1.0 } else { 1.0 });
                let half = |bits: i32| f64::from(1 << (bits - 1));
                let level = |w: f64, bits: i32| sign * (w * half(bits)).round().clamp(-half(bits), half(bits) - 1.0);
                for _ in 0..shape.row() {
                    let w = (random() + random() + random() - 1.5) / step;
                    coarse.push(level(w, coarse_bits).clamp(-128.0, 127.0) as i8);
                    fine.push(level(w * (1.0 + 0.2 * (step - 1.0)), fine_bits).clamp(-128.0, 127.0) as i8);
                }
            }
            let Some(code) = refine(&coarse, &fine, shape) else { continue };
            let what = format!("{shape:?}, {coarse_bits} to {fine_bits} bits");
            assert!(Coded::new_checked(&code, 8, fine.len()).expect(&what).is_refined());
            assert!(decode_refined(&code, &coarse).as_ref() == Some(&fine), "{what}");
            refined += 1;
        }
    }
    assert!(refined > 10, "{refined}");
}
