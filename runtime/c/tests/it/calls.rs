//! The functions as C calls them: what works gives what Rust gives, what cannot work is an error.

use crate::TINY;
use crate::model::{Builder, Memory, Random};
use core::ffi::{CStr, c_int, c_void};
use core::mem::zeroed;
use core::ptr::{null, null_mut};
use pith::circuit::Shape;
use pith::format::NONE;
use pith::format::op::{self, Op};
use pith::format::tensor::Constant;
use pith::{Aligned, Engine, Model, ops};
use pith_c::pith_error_t::*;
use pith_c::*;

const EVERY_OPERATOR: &[u8] = pith::include_model!("../../../tests/golden/every_operator.pith");
const BLOCK_SPARSE: &[u8] = pith::include_model!("../../../tests/golden/block_sparse.pith");

fn zeros<T>() -> T {
    // SAFETY: used with the plain structs of the header only, for which zeros are values.
    unsafe { zeroed() }
}

fn parse(model: &mut pith_model_t, file: &[u8]) -> pith_error_t {
    // SAFETY: a model and the bytes of a slice.
    unsafe { pith_model_parse(model, file.as_ptr().cast(), file.len()) }
}

fn init(engine: &mut pith_engine_t, model: &pith_model_t, arena: &mut [u8]) -> pith_error_t {
    // SAFETY: an engine, a model and the bytes of a slice.
    unsafe { pith_engine_init(engine, model, arena.as_mut_ptr().cast(), arena.len()) }
}

fn detail(model: &pith_model_t) -> String {
    let mut text = [1u8; 300];
    // SAFETY: a model and the bytes of an array.
    let len = unsafe { pith_model_detail(model, text.as_mut_ptr().cast(), text.len()) };
    let text = CStr::from_bytes_until_nul(&text).unwrap().to_str().unwrap();
    assert_eq!(text.len(), len);
    text.into()
}

/// Memory at a multiple of 16.
fn aligned(bytes: usize) -> Vec<Aligned<[u8; 16]>> {
    vec![Aligned([0; 16]); bytes.div_ceil(16)]
}

fn bytes_of(memory: &mut [Aligned<[u8; 16]>]) -> &mut [u8] {
    // SAFETY: `Aligned` is its bytes alone.
    unsafe { core::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), size_of_val(memory)) }
}

/// Equal bytes for equal indices, all different.
fn value(index: usize) -> i8 {
    (index.wrapping_mul(2_654_435_761) >> 7) as i8
}

/// What Rust's engine computes.
pub(crate) fn expected(file: &[u8], value: impl Fn(usize) -> i8) -> Vec<Vec<i8>> {
    let model = Model::parse(file).unwrap();
    let mut arena = aligned(model.arena_bytes());
    let mut engine = Engine::new(&model, bytes_of(&mut arena)).unwrap();
    let mut at = 0;
    for index in 0..model.inputs().len() {
        for q in engine.input(index) {
            *q = value(at);
            at += 1;
        }
    }
    engine.run();
    (0..model.outputs().len()).map(|index| engine.output(index).to_vec()).collect()
}

/// What C's engine computes, in vectors or not.
fn computed(file: &[u8], with_workspace: bool) -> Vec<Vec<i8>> {
    let mut model = zeros();
    assert_eq!(parse(&mut model, file), PITH_OK);
    run(&model, with_workspace)
}

fn run(model: &pith_model_t, with_workspace: bool) -> Vec<Vec<i8>> {
    let mut engine = zeros();
    // SAFETY: objects and memory of the lengths that are given with them, which outlive the engine.
    unsafe {
        let mut arena = aligned(pith_model_arena_bytes(model));
        let mut workspace = vec![0u8; pith_model_workspace_bytes(model)];
        let (arena, arena_bytes) = (arena.as_mut_ptr().cast::<c_void>(), 16 * arena.len());
        let made = match with_workspace && !workspace.is_empty() {
            true => {
                let (start, bytes) = (workspace.as_mut_ptr(), workspace.len());
                let mut make =
                    || pith_engine_init_workspace(&mut engine, model, arena, arena_bytes, start.cast(), bytes);
                // Memory that was used for this model before, and for something else in between.
                assert_eq!(make(), PITH_OK);
                start.add(bytes / 2).write_bytes(85, bytes - bytes / 2);
                make()
            }
            false => pith_engine_init(&mut engine, model, arena, arena_bytes),
        };
        assert_eq!(made, PITH_OK);
        let (mut port, mut at) = (zeros::<pith_port_t>(), 0);
        for index in 0..pith_model_inputs(model) {
            assert_eq!(pith_engine_input(&engine, index, &mut port), PITH_OK);
            for k in 0..port.len {
                *port.data.add(k) = value(at);
                at += 1;
            }
        }
        assert_eq!(pith_engine_run(&mut engine), PITH_OK);
        let output = |index| {
            assert_eq!(pith_engine_output(&engine, index, &mut port), PITH_OK);
            core::slice::from_raw_parts(port.data, port.len).to_vec()
        };
        (0..pith_model_outputs(model)).map(output).collect()
    }
}

#[test]
fn gives_what_rust_gives() {
    for file in [TINY, EVERY_OPERATOR, BLOCK_SPARSE] {
        assert_eq!(computed(file, false), expected(file, value));
        assert_eq!(computed(file, true), expected(file, value));
    }
}

#[test]
fn describes_inputs_and_converts_floats() {
    let (mut model, mut engine) = (zeros(), zeros());
    let mut arena = Aligned([0; 64]);
    assert_eq!((parse(&mut model, TINY), init(&mut engine, &model, &mut arena.0)), (PITH_OK, PITH_OK));
    let rust = Model::parse(TINY).unwrap();
    let (input, output) = (rust.inputs()[0], rust.outputs()[0]);
    let mut port = zeros::<pith_port_t>();
    // SAFETY: objects, and arrays of the lengths that are given with them.
    unsafe {
        assert_eq!(pith_engine_input(&engine, 0, &mut port), PITH_OK);
        assert_eq!((port.len, port.scale, port.zero_point), (3, input.scale, input.zero_point));
        assert_eq!((port.rank, port.dims), (rust.tensor(input.tensor).rank, rust.tensor(input.tensor).dims));
        let name = core::slice::from_raw_parts(port.name.cast::<u8>(), port.name_bytes);
        assert_eq!(name, rust.port_name(&input).as_bytes());
        let raw = [input.dequantize(3); 3];
        assert_eq!(pith_engine_write_input(&mut engine, 0, raw.as_ptr(), 3), PITH_OK);
        assert_eq!(pith_engine_run(&mut engine), PITH_OK);
        let mut logits = [0f32; 2];
        assert_eq!(pith_engine_read_output(&engine, 0, logits.as_mut_ptr(), 2), PITH_OK);
        assert_eq!(logits, [7, -15].map(|q| output.dequantize(q)));

        assert_eq!(pith_engine_write_input(&mut engine, 0, raw.as_ptr(), 2), PITH_LENGTH);
        assert_eq!(pith_engine_write_input(&mut engine, 1, raw.as_ptr(), 3), PITH_INDEX);
        assert_eq!(pith_engine_write_input(&mut engine, 0, null(), 3), PITH_NULL);
        assert_eq!(pith_engine_write_input(&mut engine, 0, raw.as_ptr().byte_add(1), 2), PITH_MISALIGNED);
        assert_eq!(pith_engine_write_input(&mut engine, 0, raw.as_ptr(), usize::MAX), PITH_LENGTH);
        assert_eq!(pith_engine_write_input(&mut engine, 0, port.data.cast(), 3), PITH_OVERLAP);
        assert_eq!(pith_engine_read_output(&engine, 0, logits.as_mut_ptr(), 1), PITH_LENGTH);
        assert_eq!(pith_engine_read_output(&engine, 1, logits.as_mut_ptr(), 2), PITH_INDEX);
        assert_eq!(pith_engine_read_output(&engine, 0, null_mut(), 2), PITH_NULL);
        assert_eq!(pith_engine_input(&engine, 1, &mut port), PITH_INDEX);
        assert_eq!(pith_engine_output(&engine, 0, null_mut()), PITH_NULL);
    }
}

/// A linear layer whose weights are coded.
fn coded() -> Vec<u8> {
    let (mut builder, mut random) = (Builder::default(), Random(17));
    let (x, y) = (builder.tensor(&[96], 3), builder.tensor(&[40], 0));
    let values: Vec<i8> = (0..40 * 96).map(|_| random.weight(8)).collect();
    let shape = Shape { rows: 40, positions: 1, channels: 96 };
    let weights = builder.coded(None, 8, &values, shape, Constant::IN_RAM);
    let channels = builder.channels(&[(7, 1 << 30, 40); 40]);
    let linear = op::Linear {
        input: x,
        output: y,
        weights,
        channels,
        rows: 1,
        k: 96,
        n: 40,
        weight_zero_points: NONE,
        act_min: -128,
        act_max: 127,
    };
    let op = Op::Linear(linear);
    let (record, _) = &builder.constants[weights as usize];
    let scratch = ops::scratch_bytes(&op, record, false) as u32;
    builder.op_with_scratch(op, scratch);
    (builder.inputs, builder.outputs) = (vec![x], vec![y]);
    builder.finish()
}

#[test]
fn coded_weights_are_decoded() {
    let mut file = Memory::of(&coded());
    let file: &[u8] = file.bytes();
    let rust = Model::parse(file).unwrap();
    let (bytes, work) = (rust.decoded_bytes(), rust.decode_scratch_bytes());
    let mut memory = aligned(rust.decoded_bytes());
    let decoded = rust.decode_into(bytes_of(&mut memory), &mut vec![0; work]).unwrap();
    let mut arena = aligned(rust.arena_bytes());
    let mut engine = Engine::new(&decoded, bytes_of(&mut arena)).unwrap();
    engine.input(0).iter_mut().enumerate().for_each(|(index, q)| *q = value(index));
    engine.run();
    let expected = vec![engine.output(0).to_vec()];

    let (mut model, mut scratch) = (zeros(), vec![0u8; work]);
    let (mut memory, mut arena) = (aligned(bytes + 16), aligned(rust.arena_bytes()));
    let (start, scratch) = (bytes_of(&mut memory).as_mut_ptr().cast::<c_void>(), scratch.as_mut_ptr().cast::<c_void>());
    assert_eq!(parse(&mut model, file), PITH_OK);
    assert_eq!(init(&mut zeros(), &model, bytes_of(&mut arena)), PITH_NOT_DECODED);
    // SAFETY: a model, and memory of the lengths that are given with it, or that is refused before it is used.
    unsafe {
        assert_eq!((pith_model_decoded_bytes(&model), pith_model_scratch_bytes(&model)), (bytes, work));
        assert_eq!(pith_model_decode(&mut model, null_mut(), bytes, scratch, work), PITH_NULL);
        assert_eq!(pith_model_decode(&mut model, start, bytes, null_mut(), 0), PITH_TOO_SMALL);
        assert!(detail(&model).contains("scratch"));
        assert_eq!(pith_model_decode(&mut model, start, bytes - 1, scratch, work), PITH_TOO_SMALL);
        assert_eq!(pith_model_decode(&mut model, start.byte_add(1), bytes, scratch, work), PITH_MISALIGNED);
        assert_eq!(pith_model_decode(&mut model, start, bytes, start, work), PITH_OVERLAP);
        assert_eq!(pith_model_decode(&mut model, file.as_ptr().cast_mut().cast(), bytes, scratch, work), PITH_OVERLAP);
        assert_eq!(pith_model_use_decoded(&mut model, start, bytes), PITH_DAMAGED);
        assert_eq!(pith_model_decode(&mut model, start, bytes, scratch, work), PITH_OK);
        assert_eq!(detail(&model), "");
        assert_eq!(init(&mut zeros(), &model, bytes_of(&mut arena)), PITH_OK);
        assert_eq!(pith_model_decode(&mut model, start, bytes, scratch, work), PITH_OVERLAP);
        assert_eq!(pith_engine_init(&mut zeros(), &model, start, bytes), PITH_OVERLAP);
        assert_eq!(run(&model, false), expected);
        // As if it had been kept in flash.
        assert_eq!(parse(&mut model, file), PITH_OK);
        assert_eq!(pith_model_use_decoded(&mut model, start, bytes), PITH_OK);
        assert_eq!(run(&model, false), expected);
        // A workspace decodes by itself.
        assert_eq!(parse(&mut model, file), PITH_OK);
        if pith_model_workspace_bytes(&model) > 0 {
            assert_eq!(run(&model, true), expected);
        }
    }
}

/// Counts steps, and tries to run the engine that calls it.
unsafe extern "C" fn count(context: *mut c_void, step: *const pith_step_t) -> c_int {
    // SAFETY: the context of the test below, and a step.
    unsafe {
        let (engine, steps, most) = &mut *context.cast::<(*mut pith_engine_t, usize, usize)>();
        assert_eq!(pith_engine_run(*engine), PITH_BUSY);
        assert_eq!((*step).index, *steps);
        assert!((*step).kind_bytes > 0);
        *steps += 1;
        (*steps < *most).into()
    }
}

#[test]
fn steps_can_be_watched_and_stopped() {
    let (mut model, mut engine) = (zeros(), zeros());
    assert_eq!(parse(&mut model, EVERY_OPERATOR), PITH_OK);
    let mut arena = aligned(Model::parse(EVERY_OPERATOR).unwrap().arena_bytes());
    assert_eq!(init(&mut engine, &model, bytes_of(&mut arena)), PITH_OK);
    let operators = Model::parse(EVERY_OPERATOR).unwrap().ops().count();
    for (most, verdict, steps) in [(usize::MAX, PITH_OK, operators), (2, PITH_STOPPED, 2)] {
        let engine = &raw mut engine;
        let mut context = (engine, 0, most);
        // SAFETY: an engine, a callback, and the context that it wants.
        let ran = unsafe { pith_engine_run_steps(engine, Some(count), (&raw mut context).cast()) };
        assert_eq!((ran, context.1), (verdict, steps));
    }
    // SAFETY: an engine.
    assert_eq!(unsafe { pith_engine_run_steps(&mut engine, None, null_mut()) }, PITH_NULL);
}

#[test]
fn damaged_files_are_errors_with_details() {
    let mut model = zeros();
    let mut copy = aligned(TINY.len() + 16);
    let copy = bytes_of(&mut copy);
    copy[..TINY.len()].copy_from_slice(TINY);
    assert_eq!((parse(&mut model, copy), detail(&model)), (PITH_OK, String::new()));
    assert_eq!(parse(&mut model, &copy[..TINY.len() - 1]), PITH_TRUNCATED);
    assert!(detail(&model).contains("cut off"));
    assert_eq!(parse(&mut model, &copy[..0]), PITH_TRUNCATED);
    assert_eq!(parse(&mut model, &copy[1..]), PITH_MISALIGNED);
    copy[TINY.len() - 1] ^= 1;
    assert_eq!(parse(&mut model, copy), PITH_DAMAGED);
    // SAFETY: a model that was made and is none.
    assert_eq!(unsafe { (pith_model_arena_bytes(&model), pith_model_inputs(&model)) }, (0, 0));
    let (mut engine, mut arena) = (zeros(), Aligned([0; 64]));
    assert_eq!(init(&mut engine, &model, &mut arena.0), PITH_NOT_MADE);
    copy[4] ^= 1;
    assert_eq!(parse(&mut model, copy), PITH_VERSION);
    copy[0] ^= 1;
    assert_eq!(parse(&mut model, copy), PITH_NOT_A_MODEL);
    let mut text = [1u8; 6];
    // SAFETY: a model, and no or some bytes.
    unsafe {
        assert!(pith_model_detail(&model, null_mut(), 0) > 6);
        assert!(pith_model_detail(&model, null_mut(), 6) > 6);
        assert!(pith_model_detail(&model, text.as_mut_ptr().cast(), 6) > 6);
        assert_eq!(&text, b"not a\0");
        assert_eq!(pith_model_detail(null(), text.as_mut_ptr().cast(), 6), 0);
        assert_eq!(text[0], 0);
    }
}

#[test]
fn wrong_pointers_are_errors() {
    let (mut model, mut engine) = (zeros::<pith_model_t>(), zeros::<pith_engine_t>());
    let mut arena = Aligned([0u8; 80]);
    let start = arena.0.as_mut_ptr();
    let (file, bytes) = (TINY.as_ptr().cast::<c_void>(), TINY.len());
    // SAFETY: pointers are null, or lead to as many bytes as is said, or are refused before they are used.
    unsafe {
        assert_eq!(pith_model_parse(null_mut(), file, bytes), PITH_NULL);
        assert_eq!(pith_model_parse((&raw mut model).byte_add(1), file, bytes), PITH_MISALIGNED);
        assert_eq!(pith_model_parse(&mut model, null(), bytes), PITH_NULL);
        assert_eq!(pith_model_parse(&mut model, file, usize::MAX), PITH_LENGTH);
        let own = (&raw mut model).cast();
        assert_eq!(pith_model_parse(&mut model, own, 16), PITH_OVERLAP);

        // Neither made yet.
        model = zeros();
        assert_eq!(pith_model_arena_bytes(&model) + pith_model_arena_bytes(null()), 0);
        assert_eq!(pith_model_decode(&mut model, null_mut(), 0, null_mut(), 0), PITH_NOT_MADE);
        assert_eq!(pith_engine_init(&mut engine, &model, start.cast(), 64), PITH_NOT_MADE);
        assert_eq!(pith_engine_run(&mut engine), PITH_NOT_MADE);
        assert_eq!(pith_engine_run(null_mut()), PITH_NULL);
        assert_eq!(pith_engine_run((&raw mut engine).byte_add(1)), PITH_MISALIGNED);
        assert_eq!(pith_engine_detail(&engine, null_mut(), 0), 0);

        assert_eq!(pith_model_parse(&mut model, file, bytes), PITH_OK);
        assert_eq!(pith_engine_init(null_mut(), &model, start.cast(), 64), PITH_NULL);
        assert_eq!(pith_engine_init(&mut engine, null(), start.cast(), 64), PITH_NULL);
        assert_eq!(pith_engine_init(&mut engine, &model, null_mut(), 64), PITH_NULL);
        assert_eq!(pith_engine_init(&mut engine, &model, start.add(1).cast(), 64), PITH_MISALIGNED);
        assert_eq!(pith_engine_init(&mut engine, &model, start.cast(), 1), PITH_TOO_SMALL);
        assert!(pith_engine_detail(&engine, null_mut(), 0) > 0);
        assert_eq!(pith_engine_run(&mut engine), PITH_NOT_MADE);
        assert_eq!(pith_engine_init(&mut engine, &model, start.cast(), usize::MAX), PITH_LENGTH);
        assert_eq!(pith_engine_init(&mut engine, &model, file.cast_mut(), 64), PITH_OVERLAP);
        let own = (&raw mut model).cast();
        assert_eq!(pith_engine_init(&mut engine, &model, own, 64), PITH_OVERLAP);
        let overlapping = pith_engine_init_workspace(&mut engine, &model, start.cast(), 64, start.add(63).cast(), 17);
        assert_eq!(overlapping, PITH_OVERLAP);
        if pith_model_workspace_bytes(&model) > 0 {
            let mut one = 0u8;
            let place = (&raw mut one).cast();
            let too_small = pith_engine_init_workspace(&mut engine, &model, start.cast(), 64, place, 1);
            assert_eq!(too_small, PITH_TOO_SMALL);
        }
        assert_eq!(pith_engine_init(&mut engine, &model, start.cast(), 64), PITH_OK);

        // Another model in place of the engine's.
        assert_eq!(pith_model_parse(&mut model, EVERY_OPERATOR.as_ptr().cast(), EVERY_OPERATOR.len()), PITH_OK);
        assert_eq!(pith_engine_run(&mut engine), PITH_TOO_SMALL);
        assert_eq!(pith_engine_input(&engine, 0, &mut zeros()), PITH_TOO_SMALL);
    }
}

#[test]
fn every_error_has_a_sentence() {
    let text = |error| {
        // SAFETY: never null, and ends with a zero.
        unsafe { CStr::from_ptr(pith_error_text(error)) }.to_str().unwrap()
    };
    assert_eq!(text(PITH_OK as i32), "no error");
    assert_eq!(text(PITH_OTHER as i32), "another error");
    assert_eq!([text(-1), text(18), text(i32::MAX)], ["no such error"; 3]);
}
