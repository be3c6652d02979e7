//! Engines: a model, its arena, and on a desktop a workspace.
//!
//! C keeps pointers into the arena between calls, so no Rust reference to it may outlive one: an engine here is the addresses of its memory, and every call
//! makes a [`pith::Engine`] over them: a few comparisons, and with a workspace a look at the processor and a walk over the operators.

use crate::error::{code, pith_error_t, pith_error_t::*, write_detail};
use crate::memory::{self, Span};
use crate::model::{self, pith_model_t};
use core::ffi::{c_char, c_int, c_void};
use core::ptr::null_mut;
use pith::format::tensor::{Port, Tensor};
use pith::{Engine, Error, Isa};

/// An engine: runs a model in an arena. Its content is no concern of C.
#[derive(Debug)]
#[repr(C)]
pub struct pith_engine_t {
    /// Opaque.
    words: [usize; 16],
}

/// What lies in a [`pith_engine_t`].
#[derive(Clone, Copy)]
#[repr(C)]
struct State {
    /// [`STAMP`] or [`RUNNING`]; only then is the rest what it seems to be.
    stamp: usize,
    parts: Option<Parts>,
    error: Option<Error>,
}

/// The memory of an engine.
#[derive(Clone, Copy)]
struct Parts {
    model: *const pith_model_t,
    arena: *mut c_void,
    arena_bytes: usize,
    /// Null for none.
    workspace: *mut c_void,
    workspace_bytes: usize,
    /// Of the workspace; looking it up takes longer than a small model.
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), expect(dead_code))]
    isa: Isa,
}

const STAMP: usize = 0x4548_5450;

/// The stamp while a step's callback is called.
const RUNNING: usize = 0x5248_5450;

const _: () =
    assert!(size_of::<State>() <= size_of::<pith_engine_t>() && align_of::<State>() <= align_of::<pith_engine_t>());

/// An input or output.
#[derive(Debug)]
#[repr(C)]
pub struct pith_port_t {
    /// Its values in the arena: `q = raw / scale + zero_point`. Write all inputs before a run, and read outputs before the next.
    pub data: *mut i8,
    /// Number of values.
    pub len: usize,
    /// Raw value of one step: `raw = scale * (q - zero_point)`.
    pub scale: f32,
    /// The integer of raw 0.
    pub zero_point: i32,
    /// Its name in the ONNX file, UTF-8 without a zero at its end.
    pub name: *const c_char,
    /// Length of the name.
    pub name_bytes: usize,
    /// Axes of the shape, unused ones 1; without batch, `[h, w, c]` of images.
    pub dims: [u16; 6],
    /// Number of axes.
    pub rank: u8,
    /// 1 if the tensor was `[n, c, h, w]` in the ONNX file and is `[h, w, c]` here.
    pub was_nchw: u8,
    /// 1 if raw values are bytes and `q = raw - 128`.
    pub is_u8: u8,
}

/// An operator that was executed.
#[derive(Debug)]
#[repr(C)]
pub struct pith_step_t {
    /// Its place in the model.
    pub index: usize,
    /// Its name in the ONNX file, UTF-8 without a zero at its end.
    pub name: *const c_char,
    /// Length of the name.
    pub name_bytes: usize,
    /// What it is, the same way.
    pub kind: *const c_char,
    /// Length of the kind.
    pub kind_bytes: usize,
    /// Its multiply-accumulates.
    pub macs: u64,
}

/// Called after each operator, with what the caller gave to `pith_engine_run_steps`. Says whether to go on: 0 stops the run. It may use neither the
/// engine nor the arena.
pub type pith_after_t = Option<unsafe extern "C" fn(context: *mut c_void, step: *const pith_step_t) -> c_int>;

/// The state of an engine that was made, well or not.
///
/// # Safety
/// The contract of this crate.
unsafe fn state(engine: *const pith_engine_t) -> Result<State, pith_error_t> {
    memory::check_object(engine)?;
    // SAFETY: not null and aligned, so there is a `pith_engine_t`, made or zeros; the first word of both is a stamp.
    match unsafe { *engine.cast::<usize>() } {
        // SAFETY: as above, and `make`, which alone writes stamps, writes a whole state, that fits as the assertion says.
        STAMP => Ok(unsafe { *engine.cast::<State>() }),
        RUNNING => Err(PITH_BUSY),
        _ => Err(PITH_NOT_MADE),
    }
}

/// # Safety
/// The contract of this crate.
unsafe fn parts(engine: *const pith_engine_t) -> Result<Parts, pith_error_t> {
    // SAFETY: the same contract.
    unsafe { state(engine) }?.parts.ok_or(PITH_NOT_MADE)
}

impl Parts {
    /// An engine over this memory, or why the runtime refuses it.
    ///
    /// # Safety
    /// The contract of this crate; the engine is dropped before the call returns to C.
    unsafe fn open<'a>(&self) -> Result<Result<Engine<'static, 'a>, Error>, pith_error_t> {
        // SAFETY: the same contract.
        let model = unsafe { model::loaded(self.model) }?.model;
        // SAFETY: nobody else uses the arena during the call, says the contract.
        let arena = unsafe { memory::write_bytes(self.arena, self.arena_bytes) }?;
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if !self.workspace.is_null() {
            // SAFETY: nobody else uses the workspace, says the contract.
            let workspace = unsafe { memory::write_bytes(self.workspace, self.workspace_bytes) }?;
            return Ok(Engine::with_workspace(&model, arena, self.isa, workspace));
        }
        Ok(Engine::new(&model, arena))
    }
}

/// What `run` does with an engine that was made.
///
/// # Safety
/// The contract of this crate.
unsafe fn with<T>(
    engine: *const pith_engine_t,
    run: impl FnOnce(&mut Engine<'static, '_>) -> Result<T, pith_error_t>,
) -> Result<T, pith_error_t> {
    // SAFETY: the same contract; the engine is dropped here.
    let mut engine = unsafe { parts(engine)?.open() }??;
    run(&mut engine)
}

/// As [`with`], where `raw` has to lie outside of the arena.
///
/// # Safety
/// The contract of this crate.
unsafe fn with_apart(
    engine: *const pith_engine_t,
    raw: Result<Span, pith_error_t>,
    run: impl FnOnce(&mut Engine<'static, '_>) -> Result<(), pith_error_t>,
) -> Result<(), pith_error_t> {
    // SAFETY: the same contract.
    let parts = unsafe { parts(engine) }?;
    memory::check_apart(&[Span::new(parts.arena, parts.arena_bytes)?, raw?])?;
    // SAFETY: the same contract.
    unsafe { with(engine, run) }
}

/// Refuses raw values that are not as many as an input or output has.
fn check_raw(len: usize, raw: &[f32]) -> Result<(), pith_error_t> {
    if raw.len() == len { Ok(()) } else { Err(PITH_LENGTH) }
}

/// Makes an engine for any machine. The arena, which this clears, has `pith_model_arena_bytes` bytes or more and starts at a multiple of 16. Coded
/// weights have to be decoded before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_engine_init(
    engine: *mut pith_engine_t,
    model: *const pith_model_t,
    arena: *mut c_void,
    arena_bytes: usize,
) -> pith_error_t {
    let parts = Parts { model, arena, arena_bytes, workspace: null_mut(), workspace_bytes: 0, isa: Isa::COMPILED };
    // SAFETY: the contract of this crate.
    code(unsafe { make(engine, parts) })
}

/// Makes an engine that runs on the vectors of this machine: weights are decoded and packed into the workspace of `pith_model_workspace_bytes` bytes at any
/// alignment, which this clears before. Outputs are the same bytes as without. Where the workspace is null or the machine has no vectors, this is `pith_engine_init`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_engine_init_workspace(
    engine: *mut pith_engine_t,
    model: *const pith_model_t,
    arena: *mut c_void,
    arena_bytes: usize,
    workspace: *mut c_void,
    workspace_bytes: usize,
) -> pith_error_t {
    let parts = Parts { model, arena, arena_bytes, workspace, workspace_bytes, isa: Isa::detect() };
    // SAFETY: the contract of this crate.
    code(unsafe { make(engine, parts) })
}

/// # Safety
/// The contract of this crate.
unsafe fn make(engine: *mut pith_engine_t, parts: Parts) -> Result<(), pith_error_t> {
    memory::check_object(engine)?;
    // SAFETY: the same contract.
    let opened = unsafe { try_open(engine, &parts) };
    let refused = opened.ok().and_then(Result::err);
    let is_made = opened.is_ok_and(|opened| opened.is_ok());
    let state = State { stamp: STAMP, parts: is_made.then_some(parts), error: refused };
    // SAFETY: not null and aligned for a `pith_engine_t`, which has room for a state, as the assertion says.
    unsafe { engine.cast::<State>().write(state) };
    Ok(opened??)
}

/// Whether an engine can have this memory.
///
/// # Safety
/// The contract of this crate.
unsafe fn try_open(engine: *const pith_engine_t, parts: &Parts) -> Result<Result<(), Error>, pith_error_t> {
    let arena = Span::new(parts.arena, parts.arena_bytes)?;
    let workspace = Span::new(parts.workspace, if parts.workspace.is_null() { 0 } else { parts.workspace_bytes })?;
    let object = Span::of(engine);
    memory::check_apart(&[object, Span::of(parts.model), arena, workspace])?;
    // SAFETY: the same contract.
    for read in unsafe { model::loaded(parts.model) }?.spans() {
        memory::check_apart(&[read, object, arena, workspace])?;
    }
    // Memory that was freed and given out again may hold half of a workspace, which must not be taken for a whole one.
    for (start, bytes) in [(parts.arena, parts.arena_bytes), (parts.workspace, parts.workspace_bytes)] {
        if !start.is_null() {
            // SAFETY: not null, and the caller's to write: it shares no byte with what is read.
            unsafe { start.cast::<u8>().write_bytes(0, bytes) };
        }
    }
    // SAFETY: the same contract; the engine is dropped at once.
    Ok(unsafe { parts.open() }?.map(|_| ()))
}

/// Input `index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_engine_input(
    engine: *const pith_engine_t,
    index: usize,
    port: *mut pith_port_t,
) -> pith_error_t {
    // SAFETY: the contract of this crate.
    code(unsafe { describe(engine, port, |model| model.inputs().get(index)) })
}

/// Output `index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_engine_output(
    engine: *const pith_engine_t,
    index: usize,
    port: *mut pith_port_t,
) -> pith_error_t {
    // SAFETY: the contract of this crate.
    code(unsafe { describe(engine, port, |model| model.outputs().get(index)) })
}

/// # Safety
/// The contract of this crate.
unsafe fn describe(
    engine: *const pith_engine_t,
    to: *mut pith_port_t,
    port: impl FnOnce(&pith::Model<'static>) -> Option<&'static Port>,
) -> Result<(), pith_error_t> {
    memory::check_object(to)?;
    // SAFETY: the same contract.
    let parts = unsafe { parts(engine) }?;
    // SAFETY: the same contract.
    let model = unsafe { model::loaded(parts.model) }?.model;
    let port = port(&model).ok_or(PITH_INDEX)?;
    let Tensor { offset, len, dims, rank, .. } = model.tensor(port.tensor);
    if parts.arena_bytes < model.arena_bytes() {
        return Err(PITH_TOO_SMALL); // another model was parsed in place of the engine's
    }
    let name = model.port_name(port);
    let described = pith_port_t {
        // A checked model's tensors end before `arena_bytes`.
        data: parts.arena.cast::<i8>().wrapping_add(offset as usize),
        len: len as usize,
        scale: port.scale,
        zero_point: port.zero_point,
        name: name.as_ptr().cast(),
        name_bytes: name.len(),
        dims,
        rank,
        was_nchw: (port.layout == Port::NCHW).into(),
        is_u8: (port.raw == Port::U8).into(),
    };
    // SAFETY: not null and aligned, says `check_object`.
    unsafe { to.write(described) };
    Ok(())
}

/// Runs the model: inputs to outputs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_engine_run(engine: *mut pith_engine_t) -> pith_error_t {
    // SAFETY: the contract of this crate.
    code(unsafe {
        with(engine, |engine| {
            engine.run();
            Ok(())
        })
    })
}

/// Runs the model and calls `after` after each operator, for profiling.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_engine_run_steps(
    engine: *mut pith_engine_t,
    after: pith_after_t,
    context: *mut c_void,
) -> pith_error_t {
    let Some(after) = after else { return PITH_NULL };
    let run = |opened: &mut Engine<'static, '_>| {
        let model = *opened.model();
        let (mut steps, mut index) = (opened.steps(), 0);
        while let Some((head, op)) = steps.step() {
            let (name, kind) = (model.op_name(&head), op.name());
            let step = pith_step_t {
                index,
                name: name.as_ptr().cast(),
                name_bytes: name.len(),
                kind: kind.as_ptr().cast(),
                kind_bytes: kind.len(),
                macs: op.macs(),
            };
            // SAFETY: a function of this type, says the contract; the stamp keeps it from using the engine.
            let goes_on = unsafe {
                engine.cast::<usize>().write(RUNNING);
                let goes_on = after(context, &step);
                engine.cast::<usize>().write(STAMP);
                goes_on
            };
            if goes_on == 0 {
                return Err(PITH_STOPPED);
            }
            index += 1;
        }
        Ok(())
    };
    // SAFETY: the contract of this crate.
    code(unsafe { with(engine, run) })
}

/// Quantizes `count` raw values, all of input `index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_engine_write_input(
    engine: *mut pith_engine_t,
    index: usize,
    raw: *const f32,
    count: usize,
) -> pith_error_t {
    let write = |engine: &mut Engine<'static, '_>| {
        engine.model().inputs().get(index).ok_or(PITH_INDEX)?;
        // SAFETY: the contract of this crate.
        let raw = unsafe { memory::read(raw, count) }?;
        check_raw(engine.input(index).len(), raw)?;
        engine.write_input(index, raw);
        Ok(())
    };
    // SAFETY: the contract of this crate.
    code(unsafe { with_apart(engine, Span::new(raw, count), write) })
}

/// Raw values of output `index`, all `count` of them, after a run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_engine_read_output(
    engine: *const pith_engine_t,
    index: usize,
    raw: *mut f32,
    count: usize,
) -> pith_error_t {
    let read = |engine: &mut Engine<'static, '_>| {
        engine.model().outputs().get(index).ok_or(PITH_INDEX)?;
        // SAFETY: the contract of this crate.
        let raw = unsafe { memory::write(raw, count) }?;
        check_raw(engine.output(index).len(), raw)?;
        engine.read_output(index, raw);
        Ok(())
    };
    // SAFETY: the contract of this crate.
    code(unsafe { with_apart(engine, Span::new(raw, count), read) })
}

/// Why the last `pith_engine_init` refused its memory or model, as `pith_model_detail` says it of models.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_engine_detail(engine: *const pith_engine_t, text: *mut c_char, bytes: usize) -> usize {
    // SAFETY: the contract of this crate.
    let (state, text) = unsafe { (state(engine), memory::write_bytes(text.cast(), bytes)) };
    write_detail(state.ok().and_then(|state| state.error), text.unwrap_or(&mut []))
}
