//! Models of one operator with what they must give: every operator of FORMAT.md by the sentence that defines it there, computed in 128-bit
//! integers by index loops that share nothing with the runtime. Random shapes, odd lengths, extreme values, all weight widths, in place and
//! apart, weights as every instruction set wants them, with the scratch memory that its kernels want and with less.
//!
//! The runtime's own tests run them on the desktop, `cargo xtask cases` on emulated cores.

pub mod model;

use model::{Builder, Random};
use pith::circuit::Shape;
use pith::format::NONE;
use pith::format::blocks::Layout;
use pith::format::op::{self, Op};
use pith::format::tensor::Constant;
use pith::{Isa, ops};

/// A model and what it gives.
#[derive(Clone, Debug)]
pub struct Case {
    /// For messages.
    pub what: String,
    /// The file.
    pub model: Vec<u8>,
    /// One after another.
    pub inputs: Vec<Vec<i8>>,
    /// Of the only output.
    pub expected: Vec<i8>,
}

impl Case {
    fn new(what: String, b: &Builder, inputs: &[Vec<i8>], expected: &[i8]) -> Case {
        Case { what, model: b.finish(), inputs: inputs.to_vec(), expected: expected.to_vec() }
    }
}

/// The cases of one round of a family for some instruction sets.
pub type Family = fn(&mut Random, usize, &[Isa]) -> Vec<Case>;

/// All families.
pub const FAMILIES: [(&str, Family); 7] = [
    ("convolutions", convolutions),
    ("transposed convolutions", conv_transpose),
    ("linear layers", linear),
    ("sums and products", add_and_mul),
    ("tables, slopes and softmax", tables_slopes_and_softmax),
    ("pools and means", pools_and_means),
    ("moves and resizes", moves_and_resizes),
];

/// Those that have kernels of their own.
pub const ISAS: [Isa; 4] = [Isa::ArmV6M, Isa::ArmV7M, Isa::ArmDsp, Isa::Helium];

/// `floor(numerator / 2^shift + 1/2)`.
fn rounded(numerator: i128, shift: u32) -> i128 {
    (2 * numerator + (1i128 << shift)).div_euclid(1i128 << (shift + 1))
}

/// The output stage: rescale with saturation to 32 bits, move, clamp.
fn stage(acc: i128, multiplier: i32, shift: u8, zero_point: i32, min: i8, max: i8) -> i8 {
    let q = rounded(acc * multiplier as i128, shift as u32).clamp(i32::MIN as i128, i32::MAX as i128);
    (q + zero_point as i128).clamp(min as i128, max as i128) as i8
}

/// Accumulators wrap at 32 bits.
fn wrap(acc: i128) -> i128 {
    acc as i32 as i128
}

fn bounds(r: &mut Random) -> (i8, i8) {
    let (a, b) = (r.s8(), r.s8());
    if r.below(2) == 0 { (-128, 127) } else { (a.min(b), a.max(b)) }
}

/// Output stages of one kind: what a model has, what shifts and biases may be at most, or a mixture.
fn entries(r: &mut Random, n: usize) -> Vec<(i32, i32, u8)> {
    let kind = r.below(6);
    let one = |r: &mut Random| match kind {
        0 => (r.next() as i32, r.next() as i32, r.within(1, 62) as u8),
        1 => (r.next() as i32, r.next() as i32, r.within(33, 62) as u8),
        2 => (r.within(-90, 90) as i32, r.within(1 << 30, i32::MAX as i64) as i32, r.within(24, 36) as u8),
        3 if r.below(6) == 0 => (r.next() as i32, r.next() as i32, r.within(1, 62) as u8),
        _ => (r.within(-9000, 9000) as i32, r.within(1 << 30, i32::MAX as i64) as i32, r.within(35, 41) as u8),
    };
    let all: Vec<(i32, i32, u8)> = (0..n).map(|_| one(r)).collect();
    // Half of them in so few digits that they pack.
    match r.below(2) {
        0 => all.into_iter().map(|(bias, m, s)| (bias, m >> 16 << 16, s)).collect(),
        _ => all,
    }
}

fn bits(r: &mut Random) -> u8 {
    [8, 8, 4, 2, r.within(2, 8) as u8][r.below(5)]
}

/// Zero points of asymmetric weights of `n` channels; mostly none.
fn zero_points(r: &mut Random, bits: u8, n: usize) -> Vec<i8> {
    if bits == 8 || r.below(3) > 0 {
        return Vec::new();
    }
    (0..n).map(|_| r.weight(bits)).collect()
}

fn fill(r: &mut Random, n: usize) -> Vec<i8> {
    (0..n).map(|_| r.s8()).collect()
}

/// How far tensors lie from multiples of four.
fn skew(r: &mut Random) -> u32 {
    if r.below(3) == 0 { r.below(4) as u32 } else { 0 }
}

/// Weights of 8 bits of which whole blocks are zeros, sometimes all of a band's, and how many rows a block has.
pub fn block_sparse(r: &mut Random, n: usize, k: usize) -> (usize, Vec<i8>) {
    let (rows, keep, long) = (1 + r.below(2), r.below(5), r.below(4) == 0);
    let mut weights = vec![0; n * k];
    for band in 0..n.div_ceil(rows) {
        let empty = r.below(6) == 0;
        for block in 0..k.div_ceil(4) {
            // Now and then a gap that one byte does not tell.
            let stored = !empty && r.below(4) < keep && !(long && (2..270).contains(&block));
            for row in (band * rows..n.min((band + 1) * rows)).filter(|_| stored) {
                weights[row * k + 4 * block..row * k + k.min(4 * block + 4)].iter_mut().for_each(|w| *w = r.s8());
            }
        }
    }
    (rows, weights)
}

/// Of what is decoded once.
fn residency(round: usize) -> u16 {
    if round % 4 < 2 { Constant::IN_RAM } else { Constant::IN_FLASH }
}

/// Scratch bytes of a record with those of its tiles, if it has any; none if it cannot have them.
fn with_tile(b: &Builder, record: &Op<'_>, in_place: bool, own: usize) -> Option<u32> {
    let (weights, stored) = &b.constants[record.weights()? as usize];
    if !weights.is_in_tiles() {
        return Some(own as u32);
    }
    let tile = ops::tile_scratch_bytes(record, weights, stored)?;
    let can = !in_place || ops::tiles(record, weights) == 1;
    can.then_some((own.next_multiple_of(4) + tile.iter().sum::<usize>()) as u32)
}

/// Output in the memory of `input`, or apart.
fn output(b: &mut Builder, dims: &[usize], zero_point: i32, input: u16, in_place: bool) -> u16 {
    match in_place {
        true => b.tensor_at(dims, zero_point, b.tensors[input as usize].offset),
        false => b.tensor(dims, zero_point),
    }
}

struct Window {
    record: op::Conv,
    zero: i32,
    out_zero: i32,
}

/// A random convolution whose output has at least one pixel: of any shape, or of those that kernels are made for.
fn window(r: &mut Random, depthwise: bool) -> Window {
    const KERNELS: [(usize, usize); 9] = [(3, 3), (3, 3), (3, 3), (1, 1), (1, 1), (5, 5), (1, 7), (7, 1), (10, 4)];
    loop {
        let any = r.below(3) == 0;
        let (kernel_h, kernel_w) = if any { (1 + r.below(4), 1 + r.below(4)) } else { KERNELS[r.below(9)] };
        let groups = if any && !depthwise { 1 + r.below(3) } else { 1 };
        let most = if any { 5 } else { 200 / (kernel_h * kernel_w) };
        let in_c = groups * (1 + r.below(most.min(40)));
        let out_c = if depthwise { in_c } else { groups * (1 + r.below(if any { 4 } else { 13 })) };
        let (pad_h, pad_w) = if any { (3, 3) } else { (kernel_h, kernel_w) };
        let mut u = |n: usize| 1 + r.below(n) as u16;
        let (in_h, in_w) = if any { (u(7), u(7)) } else { (u(9), u(9)) };
        let (stride_h, stride_w, dilation_h, dilation_w) =
            if any { (u(3), u(3), u(2), u(2)) } else { [(1, 1, 1, 1), (1, 1, 1, 1), (2, 2, 1, 1)][u(3) as usize - 1] };
        let (pad_top, pad_left, after_h, after_w) = (u(pad_h) - 1, u(pad_w) - 1, u(pad_h) - 1, u(pad_w) - 1);
        let (kernel_h, kernel_w) = (kernel_h as u16, kernel_w as u16);
        let span = |k: u16, d: u16| (k - 1) * d + 1;
        let (Some(room_h), Some(room_w)) = (
            (in_h + pad_top + after_h).checked_sub(span(kernel_h, dilation_h)),
            (in_w + pad_left + after_w).checked_sub(span(kernel_w, dilation_w)),
        ) else {
            continue;
        };
        let (act_min, act_max) = bounds(r);
        let record = op::Conv {
            in_h,
            in_w,
            in_c: in_c as u16,
            out_h: room_h / stride_h + 1,
            out_w: room_w / stride_w + 1,
            out_c: out_c as u16,
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            dilation_h,
            dilation_w,
            pad_top,
            pad_left,
            groups: groups as u16,
            weight_zero_points: NONE,
            act_min,
            act_max,
            ..op::Conv::default()
        };
        // Convolutions may have a zero point outside of int8.
        let zero = if r.below(6) == 0 { r.within(-16_384, 16_383) } else { r.within(-128, 127) };
        return Window { record, zero: zero as i32, out_zero: r.within(-128, 127) as i32 };
    }
}

fn convolutions(r: &mut Random, round: usize, isas: &[Isa]) -> Vec<Case> {
    let mut cases = Vec::new();
    let depthwise = round % 2 == 1;
    let Window { record: c, zero, out_zero } = window(r, depthwise);
    let (oc, g_in, g_out) = (c.out_c as usize, (c.in_c / c.groups) as usize, (c.out_c / c.groups) as usize);
    let taps = c.kernel_h as usize * c.kernel_w as usize;
    let in_blocks = !depthwise && ops::conv_fits(&c) && (-128..=127).contains(&zero);
    let bits = bits(r);
    let sparse = (in_blocks && bits == 8 && r.below(2) == 0).then(|| block_sparse(r, oc, taps * g_in));
    let zeros = zero_points(r, bits, oc);
    let run = if depthwise { 1 } else { taps * g_in };
    let weights: Vec<i8> = match &sparse {
        Some((_, weights)) => weights.clone(),
        None => {
            let zero_of = |i: usize| zeros.get(i / run % oc).copied().unwrap_or(0);
            (0..oc * taps * if depthwise { 1 } else { g_in }).map(|i| r.weight(bits) - zero_of(i)).collect()
        }
    };
    let channels = entries(r, oc);
    let shape = [c.in_h, c.in_w, c.in_c].map(usize::from);
    let input = fill(r, shape.iter().product());
    let skew = skew(r);
    let mut expected = Vec::new();
    for y in 0..c.out_h as i64 {
        for x in 0..c.out_w as i64 {
            for (o, &(bias, multiplier, shift)) in channels.iter().enumerate() {
                let mut acc = bias as i128;
                for k in 0..taps {
                    let (ky, kx) = (k / c.kernel_w as usize, k % c.kernel_w as usize);
                    let iy = y * c.stride_h as i64 - c.pad_top as i64 + (ky * c.dilation_h as usize) as i64;
                    let ix = x * c.stride_w as i64 - c.pad_left as i64 + (kx * c.dilation_w as usize) as i64;
                    if !(0..shape[0] as i64).contains(&iy) || !(0..shape[1] as i64).contains(&ix) {
                        continue;
                    }
                    let pixel = (iy as usize * shape[1] + ix as usize) * shape[2];
                    let reads = if depthwise {
                        vec![(o, k * oc + o)]
                    } else {
                        (0..g_in).map(|i| (o / g_out * g_in + i, (o * taps + k) * g_in + i)).collect()
                    };
                    for (channel, w) in reads {
                        acc += (input[pixel + channel] as i128 - zero as i128) * weights[w] as i128;
                    }
                }
                expected.push(stage(wrap(acc), multiplier, shift, out_zero, c.act_min, c.act_max));
            }
        }
    }
    let kernel = [c.kernel_h, c.kernel_w, c.in_c].map(usize::from);
    let code = Shape { rows: oc, positions: taps, channels: if depthwise { 1 } else { g_in } };
    let case = |isa: Isa, in_place: bool, wanted: bool, coded: Option<u16>| -> Option<Case> {
        let fits = c.out_h as usize * c.out_w as usize * oc <= input.len();
        let narrow = narrow(isa, bits, &zeros).filter(|_| in_blocks && coded == Some(Constant::IN_TILES));
        let own = isa.layout().filter(|layout| in_blocks && layout.holds(bits));
        let layout = narrow.map(|(layout, _)| layout).or(own);
        let repeats = isa != Isa::Generic && !depthwise && layout.is_none();
        let overwrites = fits && (depthwise || layout.is_some() && ops::runs_in_place(&c));
        // Other codes hold weights as they are.
        if repeats || in_place && !overwrites || coded.is_some() && !zeros.is_empty() && narrow.is_none() {
            return None;
        }
        let mut b = Builder { skew, ..Builder::default() };
        let x = b.tensor(&shape, zero);
        let y = output(&mut b, &[c.out_h, c.out_w, c.out_c].map(usize::from), out_zero, x, in_place);
        let mut weight_zero_points = NONE;
        let (w, ch) = match (layout, coded) {
            _ if let Some(narrow) = narrow => {
                let stages = b.stages(&channels, true, Constant::IN_TILES);
                (b.narrow(narrow, bits, &zeros, &weights, code), stages)
            }
            (Some(layout), None) => (b.blocks(layout, bits, zero, kernel, &weights, &zeros, &channels), NONE),
            (None, None) => {
                let (w, zeros) = b.asymmetric(&weights, bits, &zeros, run);
                weight_zero_points = zeros;
                (w, b.channels(&channels))
            }
            (layout, Some(residency)) if depthwise => {
                let rows: Vec<i8> = (0..oc * taps).map(|i| weights[i % taps * oc + i / taps]).collect();
                (b.coded(layout, bits, &rows, code, residency), b.stages(&channels, false, residency))
            }
            (layout, Some(residency)) => {
                let stages = b.stages(&channels, layout.is_some(), residency);
                (b.coded(layout, bits, &weights, code, residency), stages)
            }
        };
        let record = op::Conv { input: x, output: y, weights: w, channels: ch, weight_zero_points, ..c };
        let record = if depthwise { Op::Depthwise(record) } else { Op::Conv(record) };
        let least = ops::scratch_bytes(&record, &b.record(w), in_place);
        let most = ops::wanted_scratch_bytes(&record, &b.record(w), in_place, isa);
        if wanted && least == most {
            return None;
        }
        let scratch = with_tile(&b, &record, in_place, if wanted { most } else { least })?;
        b.op_with_scratch(record, scratch);
        (b.inputs, b.outputs) = (vec![x], vec![y]);
        let what = format!("{isa:?}, {bits} bits, {coded:?}, in place {in_place}, all scratch {wanted}: {record:?}");
        Some(Case::new(what, &b, std::slice::from_ref(&input), &expected))
    };
    let in_sparse = |rows: usize, in_place: bool| -> Option<Case> {
        let fits = c.out_h as usize * c.out_w as usize * oc <= input.len();
        if in_place && !(fits && ops::runs_in_place(&c)) {
            return None;
        }
        let mut b = Builder { skew, ..Builder::default() };
        let x = b.tensor(&shape, zero);
        let y = output(&mut b, &[c.out_h, c.out_w, c.out_c].map(usize::from), out_zero, x, in_place);
        let w = b.sparse(rows, zero, &weights, &channels);
        let record = Op::Conv(op::Conv { input: x, output: y, weights: w, channels: NONE, ..c });
        b.op_with_scratch(record, ops::scratch_bytes(&record, &b.record(w), in_place) as u32);
        (b.inputs, b.outputs) = (vec![x], vec![y]);
        let what = format!("blocks of {rows} by 4, in place {in_place}: {record:?}");
        Some(Case::new(what, &b, std::slice::from_ref(&input), &expected))
    };
    if let Some((rows, _)) = sparse {
        cases.extend([false, true].into_iter().filter_map(|in_place| in_sparse(rows, in_place)));
    }
    for isa in [Isa::Generic].iter().chain(isas) {
        for (in_place, wanted) in [(false, false), (false, true), (true, false), (true, true)] {
            cases.extend(case(*isa, in_place, wanted, None));
        }
        cases.extend(case(*isa, round % 4 > 1, round % 6 < 3, Some(Constant::IN_TILES)));
        cases.extend(case(*isa, round % 4 < 2, round % 6 > 2, Some(residency(round))));
    }
    cases
}

/// The layout of a set and its width for weights that it does not hold as they are: of another width, or with zero points.
fn narrow(isa: Isa, bits: u8, zeros: &[i8]) -> Option<(Layout, u8)> {
    let layout = isa.layout()?;
    let wide = (bits + u8::from(!zeros.is_empty())..=8).find(|&bits| layout.holds(bits))?;
    (wide > bits).then_some((layout, wide))
}

fn conv_transpose(r: &mut Random, round: usize, _: &[Isa]) -> Vec<Case> {
    let Window { record: c, zero, out_zero } = window(r, false);
    // The forward window's input and output change places.
    let groups = c.groups;
    let c = op::Conv { in_h: c.out_h, in_w: c.out_w, out_h: c.in_h, out_w: c.in_w, ..c };
    let bits = r.within(2, 8) as u8;
    let (g_in, g_out) = ((c.in_c / groups) as usize, (c.out_c / groups) as usize);
    let taps = c.kernel_h as usize * c.kernel_w as usize;
    let zeros = zero_points(r, bits, c.out_c as usize);
    let zero_of = |i: usize| zeros.get(i / (taps * g_in)).copied().unwrap_or(0);
    let weights: Vec<i8> = (0..c.out_c as usize * taps * g_in).map(|i| r.weight(bits) - zero_of(i)).collect();
    let channels = entries(r, c.out_c as usize);
    let input = fill(r, c.in_h as usize * c.in_w as usize * c.in_c as usize);
    // Scattered, where the runtime gathers.
    let out = [c.out_h, c.out_w, c.out_c].map(usize::from);
    let mut acc: Vec<i128> = (0..out[0] * out[1] * out[2]).map(|i| channels[i % out[2]].0 as i128).collect();
    for iy in 0..c.in_h as i64 {
        for ix in 0..c.in_w as i64 {
            for k in 0..taps {
                let y =
                    iy * c.stride_h as i64 - c.pad_top as i64 + (k as i64 / c.kernel_w as i64) * c.dilation_h as i64;
                let x =
                    ix * c.stride_w as i64 - c.pad_left as i64 + (k as i64 % c.kernel_w as i64) * c.dilation_w as i64;
                if !(0..out[0] as i64).contains(&y) || !(0..out[1] as i64).contains(&x) {
                    continue;
                }
                for o in 0..out[2] {
                    for i in 0..g_in {
                        let at = (iy as usize * c.in_w as usize + ix as usize) * c.in_c as usize + o / g_out * g_in + i;
                        let w = weights[(o * taps + k) * g_in + i] as i128;
                        acc[(y as usize * out[1] + x as usize) * out[2] + o] += (input[at] as i128 - zero as i128) * w;
                    }
                }
            }
        }
    }
    let done = |(i, &acc): (usize, &i128)| {
        let (_, multiplier, shift) = channels[i % out[2]];
        stage(wrap(acc), multiplier, shift, out_zero, c.act_min, c.act_max)
    };
    let expected: Vec<i8> = acc.iter().enumerate().map(done).collect();
    let mut b = Builder::default();
    let x = b.tensor(&[c.in_h, c.in_w, c.in_c].map(usize::from), zero);
    let y = b.tensor(&out, out_zero);
    let ch = b.channels(&channels);
    let code = Shape { rows: c.out_c as usize, positions: taps, channels: g_in };
    let case = |coded: Option<u16>| {
        if coded.is_some() && !zeros.is_empty() {
            return None;
        }
        let mut b = b.clone();
        let (w, weight_zero_points) = match coded {
            None => b.asymmetric(&weights, bits, &zeros, taps * g_in),
            Some(residency) => (b.coded(None, bits, &weights, code, residency), NONE),
        };
        let record = op::Conv { input: x, output: y, weights: w, channels: ch, weight_zero_points, ..c };
        let record = Op::ConvTranspose(record);
        let scratch = with_tile(&b, &record, false, 0)?;
        b.op_with_scratch(record, scratch);
        (b.inputs, b.outputs) = (vec![x], vec![y]);
        Some(Case::new(format!("{coded:?}: {c:?}"), &b, std::slice::from_ref(&input), &expected))
    };
    [None, Some(Constant::IN_TILES), Some(residency(round))].into_iter().filter_map(case).collect()
}

fn linear(r: &mut Random, round: usize, isas: &[Isa]) -> Vec<Case> {
    let mut cases = Vec::new();
    let (rows, k, n) = (1 + r.below(3) * r.below(4), 1 + r.below(300), 1 + r.below(20));
    let bits = bits(r);
    let limit = if r.below(6) == 0 { 16_383 } else { 127 };
    let (zero, out_zero) = (r.within(-limit - 1, limit) as i32, r.within(-128, 127) as i32);
    let (act_min, act_max) = bounds(r);
    // Long rows have gaps that one byte does not tell.
    let k = if bits == 8 && r.below(8) == 0 { 4 * k } else { k };
    let sparse = (bits == 8 && r.below(2) == 0).then(|| block_sparse(r, n, k));
    let zeros = zero_points(r, bits, n);
    let zero_of = |i: usize| zeros.get(i / k).copied().unwrap_or(0);
    let weights: Vec<i8> = match &sparse {
        Some((_, weights)) => weights.clone(),
        None => (0..n * k).map(|i| r.weight(bits) - zero_of(i)).collect(),
    };
    let mut channels = entries(r, n);
    // A bias near the end makes the sum wrap.
    channels[0].0 = if round.is_multiple_of(2) { i32::MAX } else { i32::MIN };
    let input = fill(r, rows * k);
    let mut expected = Vec::new();
    for row in input.chunks(k) {
        for (i, &(bias, multiplier, shift)) in channels.iter().enumerate() {
            let sum: i128 =
                row.iter().zip(&weights[i * k..]).map(|(&q, &w)| (q as i128 - zero as i128) * w as i128).sum();
            expected.push(stage(wrap(bias as i128 + sum), multiplier, shift, out_zero, act_min, act_max));
        }
    }
    let skew = skew(r);
    let code = Shape { rows: n, positions: 1, channels: k };
    let case = |isa: Isa, in_place: bool, coded: Option<u16>, sparse: Option<usize>| -> Option<Case> {
        let narrow = narrow(isa, bits, &zeros).filter(|_| coded == Some(Constant::IN_TILES));
        let layout = narrow.map(|(layout, _)| layout).or(isa.layout().filter(|layout| layout.holds(bits)));
        let overwrites = (layout.is_some() || sparse.is_some()) && n <= k;
        let coded_as_is = coded.is_none() || zeros.is_empty() || narrow.is_some();
        if in_place && !overwrites || isa != Isa::Generic && layout.is_none() || !coded_as_is {
            return None;
        }
        let mut b = Builder { skew, ..Builder::default() };
        let x = b.tensor(&[rows, k], zero);
        let y = output(&mut b, &[rows, n], out_zero, x, in_place);
        let mut weight_zero_points = NONE;
        let (weights, channels) = match (layout, coded) {
            _ if let Some(rows) = sparse => (b.sparse(rows, zero, &weights, &channels), NONE),
            _ if let Some(narrow) = narrow => {
                let stages = b.stages(&channels, true, Constant::IN_TILES);
                (b.narrow(narrow, bits, &zeros, &weights, code), stages)
            }
            (Some(layout), None) => (b.blocks(layout, bits, zero, [1, 1, k], &weights, &zeros, &channels), NONE),
            (None, None) => {
                let (weights, zeros) = b.asymmetric(&weights, bits, &zeros, k);
                weight_zero_points = zeros;
                (weights, b.channels(&channels))
            }
            (layout, Some(residency)) => {
                let stages = b.stages(&channels, layout.is_some(), residency);
                (b.coded(layout, bits, &weights, code, residency), stages)
            }
        };
        let record = Op::Linear(op::Linear {
            input: x,
            output: y,
            weights,
            channels,
            rows: rows as u32,
            k: k as u32,
            n: n as u32,
            weight_zero_points,
            act_min,
            act_max,
        });
        let scratch = ops::wanted_scratch_bytes(&record, &b.record(weights), in_place, isa);
        let scratch = with_tile(&b, &record, in_place, scratch)?;
        b.op_with_scratch(record, scratch);
        (b.inputs, b.outputs) = (vec![x], vec![y]);
        let what = format!("{isa:?}, {bits} bits, {coded:?}, blocks {sparse:?}, in place {in_place}: {record:?}");
        Some(Case::new(what, &b, std::slice::from_ref(&input), &expected))
    };
    for isa in [Isa::Generic].iter().chain(isas) {
        for in_place in [false, true] {
            for coded in [None, Some(Constant::IN_TILES), Some(residency(round))] {
                cases.extend(case(*isa, in_place, coded, None));
            }
        }
    }
    if let Some((rows, _)) = sparse {
        cases.extend([false, true].into_iter().filter_map(|in_place| case(Isa::Generic, in_place, None, Some(rows))));
    }
    cases
}

fn add_and_mul(r: &mut Random, round: usize, _: &[Isa]) -> Vec<Case> {
    let dense = r.below(2) == 0;
    let most = if dense { [1, 5, 7, 20] } else { [2, 3, 4, 5] };
    let dims = most.map(|most| 1 + r.below(most) as u32);
    let mut strides = [0u32; 4];
    let mut step = 1;
    for i in (0..4).rev() {
        strides[i] = if dims[i] == 1 { 0 } else { step };
        step *= dims[i];
    }
    // The right operand lacks some axes.
    let missing: Vec<bool> = (0..4).map(|_| !dense && r.below(3) == 0).collect();
    let mut rhs_strides = [0u32; 4];
    let mut rhs_len = 1;
    for i in (0..4).rev() {
        if !missing[i] && dims[i] > 1 {
            rhs_strides[i] = rhs_len;
            rhs_len *= dims[i];
        }
    }
    let zeros = [0; 3].map(|_: i32| r.within(-128, 127) as i32);
    let (act_min, act_max) = bounds(r);
    let add = round.is_multiple_of(2);
    let in_place = r.below(2) == 0;
    let constant = r.below(3) == 0;
    let limit = pith::fixed::SUM_MULTIPLIER_MAX as i64;
    let (m, n, shift) = match add {
        true => (r.within(-limit, limit) as i32, r.within(-limit, limit) as i32, r.within(1, 30) as u8),
        false => (r.next() as i32, 0, r.within(1, 62) as u8),
    };
    let (lhs, rhs) = (fill(r, step as usize), fill(r, rhs_len as usize));
    let mut expected = Vec::new();
    for (i, &a) in lhs.iter().enumerate() {
        let mut rest = i as u32;
        let mut at = 0;
        for axis in (0..4).rev() {
            at += rest % dims[axis] * rhs_strides[axis];
            rest /= dims[axis];
        }
        let (a, b) = (a as i128 - zeros[0] as i128, rhs[at as usize] as i128 - zeros[1] as i128);
        expected.push(match add {
            true => {
                let q = rounded(a * m as i128 + b * n as i128, shift as u32) + zeros[2] as i128;
                q.clamp(act_min as i128, act_max as i128) as i8
            }
            false => stage(a * b, m, shift, zeros[2], act_min, act_max),
        });
    }
    let mut b = Builder { skew: skew(r), ..Builder::default() };
    let x = b.tensor(&[lhs.len()], zeros[0]);
    let y = output(&mut b, &[lhs.len()], zeros[2], x, in_place);
    let z = if constant { b.weights(&rhs, 8) } else { b.tensor(&[rhs.len()], zeros[1]) };
    let record = op::Binary {
        lhs: x,
        rhs: z,
        output: y,
        rhs_is_constant: u8::from(constant),
        dims,
        lhs_strides: strides,
        rhs_strides,
        lhs_multiplier: m,
        rhs_multiplier: n,
        rhs_zero_point: if constant { zeros[1] } else { 0 },
        shift,
        act_min,
        act_max,
        ..op::Binary::default()
    };
    b.op(if add { Op::Add(record) } else { Op::Mul(record) });
    b.inputs = if constant { vec![x] } else { vec![x, z] };
    b.outputs = vec![y];
    let inputs = if constant { vec![lhs] } else { vec![lhs, rhs] };
    vec![Case::new(format!("in place {in_place}: {record:?}"), &b, &inputs, &expected)]
}

fn tables_slopes_and_softmax(r: &mut Random, round: usize, _: &[Isa]) -> Vec<Case> {
    let mut cases = Vec::new();
    let (rows, c) = (1 + r.below(4), 1 + r.below(40));
    let input = fill(r, rows * c);
    let in_place = round.is_multiple_of(2);
    let (zero, out_zero) = (r.within(-128, 127) as i32, r.within(-128, 127) as i32);
    let skew = skew(r);
    let build = |what: &str, expected: &[i8], out_zero: i32, make: &dyn Fn(&mut Builder, u16, u16)| {
        let mut b = Builder { skew, ..Builder::default() };
        let x = b.tensor(&[rows, c], zero);
        let y = output(&mut b, &[rows, c], out_zero, x, in_place);
        make(&mut b, x, y);
        (b.inputs, b.outputs) = (vec![x], vec![y]);
        Case::new(format!("{what} of {rows} x {c}, in place {in_place}"), &b, std::slice::from_ref(&input), expected)
    };

    let table = fill(r, 256);
    let expected: Vec<i8> = input.iter().map(|&q| table[(q as i32 + 128) as usize]).collect();
    cases.push(build("table", &expected, out_zero, &|b, input, output| {
        let bytes = table.iter().map(|&v| v as u8).collect();
        let table = b.constant(pith::format::tensor::Constant::KIND_TABLE_S8, 8, 256, bytes);
        b.op(Op::Lookup(op::Lookup { input, output, table, reserved: 0 }));
    }));

    let channels = entries(r, c);
    let (m, shift) = (r.next() as i32, r.within(1, 62) as u8);
    let slope = |(i, &q): (usize, &i8)| {
        let d = q as i128 - zero as i128;
        let (_, n, t) = channels[i % c];
        if d >= 0 { stage(d, m, shift, out_zero, -128, 127) } else { stage(d, n, t, out_zero, -128, 127) }
    };
    let expected: Vec<i8> = input.iter().enumerate().map(slope).collect();
    cases.push(build("slopes", &expected, out_zero, &|b, input, output| {
        let channels = b.channels(&channels);
        b.op(Op::PRelu(op::PRelu { input, output, channels, c: c as u16, multiplier: m, shift: shift as u32 }));
    }));

    let decay = 1 + r.below(3000) as u32;
    let table: Vec<u16> = (0..256u32).map(|i| (32_768u64 * 1000 / (1000 + (i * decay) as u64)) as u16).collect();
    let expected: Vec<i8> = input
        .chunks(c)
        .flat_map(|row| {
            let max = *row.iter().max().unwrap();
            let e = |q: i8| table[(max as i32 - q as i32) as usize] as i128;
            let sum: i128 = row.iter().map(|&q| e(q)).sum();
            row.iter().map(|&q| ((512 * e(q) + sum).div_euclid(2 * sum) - 128).min(127) as i8).collect::<Vec<_>>()
        })
        .collect();
    cases.push(build("softmax", &expected, -128, &|b, input, output| {
        let table = b.u16s(&table);
        let (rows, columns) = (rows as u32, c as u32);
        b.op(Op::Softmax(op::Softmax { input, output, table, reserved: 0, rows, columns }));
    }));
    cases
}

fn pools_and_means(r: &mut Random, round: usize, _: &[Isa]) -> Vec<Case> {
    let mut cases = Vec::new();
    let Window { record: c, out_zero, .. } = window(r, true);
    let zero = r.within(-128, 127) as i32;
    let average = round.is_multiple_of(2);
    let area = c.kernel_h as usize * c.kernel_w as usize;
    let one_entry = r.below(2) == 0;
    let channels = entries(r, if one_entry { 1 } else { area });
    let shape = [c.in_h, c.in_w, c.in_c].map(usize::from);
    let input = fill(r, shape.iter().product());
    let mut expected = Vec::new();
    for y in 0..c.out_h as i64 {
        for x in 0..c.out_w as i64 {
            for o in 0..shape[2] {
                let mut values: Vec<i128> = Vec::new();
                for k in 0..area as i64 {
                    let iy = y * c.stride_h as i64 - c.pad_top as i64 + k / c.kernel_w as i64 * c.dilation_h as i64;
                    let ix = x * c.stride_w as i64 - c.pad_left as i64 + k % c.kernel_w as i64 * c.dilation_w as i64;
                    if (0..shape[0] as i64).contains(&iy) && (0..shape[1] as i64).contains(&ix) {
                        values.push(input[(iy as usize * shape[1] + ix as usize) * shape[2] + o] as i128);
                    }
                }
                expected.push(match average {
                    true => {
                        let entry = if one_entry { 0 } else { values.len().saturating_sub(1) };
                        let (_, m, shift) = channels[entry];
                        let sum = values.iter().map(|v| v - zero as i128).sum();
                        stage(sum, m, shift, out_zero, c.act_min, c.act_max)
                    }
                    false => {
                        let max = values.iter().copied().max().unwrap_or(-128);
                        max.clamp(c.act_min as i128, c.act_max as i128) as i8
                    }
                });
            }
        }
    }
    let mut b = Builder { skew: skew(r), ..Builder::default() };
    let x = b.tensor(&shape, zero);
    let y = b.tensor(&[c.out_h, c.out_w, c.out_c].map(usize::from), out_zero);
    let record = op::Pool {
        input: x,
        output: y,
        channels: if average { b.channels(&channels) } else { NONE },
        in_h: c.in_h,
        in_w: c.in_w,
        c: c.in_c,
        out_h: c.out_h,
        out_w: c.out_w,
        kernel_h: c.kernel_h,
        kernel_w: c.kernel_w,
        stride_h: c.stride_h,
        stride_w: c.stride_w,
        dilation_h: c.dilation_h,
        dilation_w: c.dilation_w,
        pad_top: c.pad_top,
        pad_left: c.pad_left,
        act_min: c.act_min,
        act_max: c.act_max,
        reserved: 0,
    };
    b.op(if average { Op::AveragePool(record) } else { Op::MaxPool(record) });
    (b.inputs, b.outputs) = (vec![x], vec![y]);
    cases.push(Case::new(format!("{record:?}"), &b, &[input], &expected));

    let [outer, reduce, inner] = [1 + r.below(3), 1 + r.below(40), 1 + r.below(70)];
    let (_, m, shift) = entries(r, 1)[0];
    let input = fill(r, outer * reduce * inner);
    let mean = |i: usize| {
        let (o, c) = (i / inner, i % inner);
        let sum = (0..reduce).map(|k| input[(o * reduce + k) * inner + c] as i128 - zero as i128).sum();
        stage(sum, m, shift, out_zero, -128, 127)
    };
    let expected: Vec<i8> = (0..outer * inner).map(mean).collect();
    let mut b = Builder { skew: skew(r), ..Builder::default() };
    let (x, y) = (b.tensor(&[outer, reduce, inner], zero), b.tensor(&[outer, inner], out_zero));
    let [outer, reduce, inner] = [outer, reduce, inner].map(|n| n as u32);
    b.op(Op::Mean(op::Mean { input: x, output: y, outer, reduce, inner, multiplier: m, shift: shift as u32 }));
    (b.inputs, b.outputs) = (vec![x], vec![y]);
    cases.push(Case::new(format!("mean of {outer} x {reduce} x {inner}"), &b, &[input], &expected));
    cases
}

fn moves_and_resizes(r: &mut Random, _: usize, _: &[Isa]) -> Vec<Case> {
    let mut cases = Vec::new();
    let dims: Vec<usize> = (0..3).map(|_| 1 + r.below(4)).collect();
    let n: usize = dims.iter().product();
    let input = fill(r, n);
    let index = |i: usize| [i / dims[2] / dims[1], i / dims[2] % dims[1], i % dims[2]];

    let before: Vec<usize> = (0..3).map(|_| r.below(3)).collect();
    let out: Vec<usize> = (0..3).map(|i| before[i] + dims[i] + r.below(3)).collect();
    let value = r.s8();
    let mut expected = vec![value; out.iter().product()];
    for (i, &q) in input.iter().enumerate() {
        let at = index(i);
        expected[((at[0] + before[0]) * out[1] + at[1] + before[1]) * out[2] + at[2] + before[2]] = q;
    }
    let mut b = Builder::default();
    let (x, y) = (b.tensor(&dims, 0), b.tensor(&out, 0));
    let six = |v: &[usize], fill: u16| {
        let mut all = [fill; 6];
        all[3..].iter_mut().zip(v).for_each(|(to, &d)| *to = d as u16);
        all
    };
    let (in_dims, out_dims, before) = (six(&dims, 1), six(&out, 1), six(&before, 0));
    b.op(Op::Pad(op::Pad { input: x, output: y, in_dims, out_dims, before, value, reserved: [0; 3] }));
    (b.inputs, b.outputs) = (vec![x], vec![y]);
    cases.push(Case::new("pad".into(), &b, std::slice::from_ref(&input), &expected));

    // A transpose that runs backwards along its last axis.
    let strides = [dims[1] * dims[2], dims[2], 1];
    let order = [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]][r.below(4)];
    let shape = order.map(|a| dims[a]);
    let (mut record_strides, mut offset) = ([0; 6], 0);
    (0..3).for_each(|i| record_strides[3 + i] = strides[order[i]] as i32);
    record_strides[5] = -record_strides[5];
    offset += (shape[2] - 1) * strides[order[2]];
    let mut expected = Vec::new();
    for i in 0..shape[0] {
        for j in 0..shape[1] {
            for k in (0..shape[2]).rev() {
                let at = [i, j, k];
                expected.push(input[(0..3).map(|a| at[a] * strides[order[a]]).sum::<usize>()]);
            }
        }
    }
    let mut b = Builder::default();
    let (x, y) = (b.tensor(&dims, 0), b.tensor(&shape, 0));
    let record =
        op::Rearrange { input: x, output: y, dims: six(&shape, 1), strides: record_strides, offset: offset as u32 };
    b.op(Op::Rearrange(record));
    (b.inputs, b.outputs) = (vec![x], vec![y]);
    cases.push(Case::new("rearrange".into(), &b, std::slice::from_ref(&input), &expected));

    // Concat of two, the second rescaled.
    let (outer, a_inner, b_inner) = (1 + r.below(3), 1 + r.below(5), 1 + r.below(5));
    let (first, second) = (fill(r, outer * a_inner), fill(r, outer * b_inner));
    let (zero, out_zero) = (r.within(-128, 127) as i32, r.within(-128, 127) as i32);
    let (_, m, shift) = entries(r, 1)[0];
    let m = m | 1;
    let mut expected = Vec::new();
    for o in 0..outer {
        expected.extend(&first[o * a_inner..(o + 1) * a_inner]);
        let moved = second[o * b_inner..(o + 1) * b_inner].iter();
        expected.extend(moved.map(|&q| stage(q as i128 - zero as i128, m, shift, out_zero, -128, 127)));
    }
    let mut b = Builder::default();
    let (p, q) = (b.tensor(&[outer, a_inner], out_zero), b.tensor(&[outer, b_inner], zero));
    let y = b.tensor(&[outer, a_inner + b_inner], out_zero);
    let part = |input, inner: usize, multiplier, shift: u8| op::ConcatInput {
        input,
        reserved: 0,
        inner: inner as u32,
        multiplier,
        shift: shift as u32,
    };
    b.concat(y, outer as u32, &[part(p, a_inner, 0, 1), part(q, b_inner, m, shift)]);
    (b.inputs, b.outputs) = (vec![p, q], vec![y]);
    cases.push(Case::new("concat".into(), &b, &[first, second], &expected));

    // Interpolation with random taps.
    let [h, w, c] = [dims[0], dims[1], dims[2]];
    let (oh, ow) = (1 + r.below(5), 1 + r.below(5));
    let mut taps = |count: usize, n: usize| -> Vec<[usize; 3]> {
        (0..count).map(|_| [r.below(n), r.below(n), r.below(2049)]).collect()
    };
    let (rows, columns) = (taps(oh, h), taps(ow, w));
    let at = |y: usize, x: usize, k: usize| input[(y * w + x) * c + k] as i128;
    let (mut near, mut linear) = (Vec::new(), Vec::new());
    for row in &rows {
        for column in &columns {
            for k in 0..c {
                near.push(at(row[0], column[0], k) as i8);
                let (v, u) = (row[2] as i128, column[2] as i128);
                let sum = at(row[0], column[0], k) * (2048 - v) * (2048 - u)
                    + at(row[0], column[1], k) * (2048 - v) * u
                    + at(row[1], column[0], k) * v * (2048 - u)
                    + at(row[1], column[1], k) * v * u;
                linear.push(rounded(sum, 22) as i8);
            }
        }
    }
    for (bilinear, expected) in [(false, near), (true, linear)] {
        let mut b = Builder::default();
        let (x, y) = (b.tensor(&dims, 0), b.tensor(&[oh, ow, c], 0));
        let flat = |taps: &[[usize; 3]]| -> Vec<u16> {
            taps.iter().flat_map(|t| t[..if bilinear { 3 } else { 1 }].iter().map(|&v| v as u16)).collect()
        };
        let (rows, columns) = (b.u16s(&flat(&rows)), b.u16s(&flat(&columns)));
        let [in_h, in_w, c, out_h, out_w] = [h, w, c, oh, ow].map(|v| v as u16);
        let record = op::Resize { input: x, output: y, rows, columns, in_h, in_w, c, out_h, out_w, reserved: 0 };
        b.op(if bilinear { Op::ResizeBilinear(record) } else { Op::ResizeNearest(record) });
        (b.inputs, b.outputs) = (vec![x], vec![y]);
        cases.push(Case::new("resize".into(), &b, std::slice::from_ref(&input), &expected));
    }
    cases
}
