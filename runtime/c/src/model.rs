//! Models: a file is checked once, its coded weights are decoded.

use crate::error::{code, pith_error_t, pith_error_t::*, write_detail};
use crate::memory::{self, Span};
use core::ffi::{c_char, c_void};
use pith::{Error, Model};

/// A model: a checked view over the bytes of a file, which it does not copy. Its content is no concern of C.
#[derive(Debug)]
#[repr(C)]
pub struct pith_model_t {
    /// Opaque.
    words: [usize; 46],
}

/// What lies in a [`pith_model_t`].
#[derive(Clone, Copy)]
#[repr(C)]
struct State {
    /// [`STAMP`]; only then is the rest what it seems to be.
    stamp: usize,
    loaded: Option<Loaded>,
    error: Option<Error>,
}

/// A model that is one.
#[derive(Clone, Copy)]
pub(crate) struct Loaded {
    pub(crate) model: Model<'static>,
    file: Span,
    decoded: Span,
}

impl Loaded {
    /// The memory that it reads.
    pub(crate) fn spans(&self) -> [Span; 2] {
        [self.file, self.decoded]
    }
}

const STAMP: usize = 0x4D48_5450;

const _: () =
    assert!(size_of::<State>() <= size_of::<pith_model_t>() && align_of::<State>() <= align_of::<pith_model_t>());

/// The state of a model that was made, well or not.
///
/// # Safety
/// The contract of this crate.
unsafe fn state<'a>(model: *const pith_model_t) -> Result<&'a State, pith_error_t> {
    memory::check_object(model)?;
    // SAFETY: not null and aligned, so there is a `pith_model_t`, made or zeros; the first word of both is a stamp.
    if unsafe { *model.cast::<usize>() } != STAMP {
        return Err(PITH_NOT_MADE);
    }
    // SAFETY: as above, and `pith_model_parse`, which alone writes the stamp, writes a whole state, that fits as the assertion says.
    Ok(unsafe { &*model.cast::<State>() })
}

/// What was made.
///
/// # Safety
/// The contract of this crate.
pub(crate) unsafe fn loaded(model: *const pith_model_t) -> Result<Loaded, pith_error_t> {
    // SAFETY: the same contract.
    unsafe { state(model) }?.loaded.ok_or(PITH_NOT_MADE)
}

/// A number of a model, 0 if it is none.
///
/// # Safety
/// The contract of this crate.
unsafe fn number(model: *const pith_model_t, of: impl FnOnce(&Model<'static>) -> usize) -> usize {
    // SAFETY: the same contract.
    unsafe { loaded(model) }.map_or(0, |loaded| of(&loaded.model))
}

/// Makes a model of a file that lies in memory, at a multiple of 16 bytes, and checks all that a run relies on. `bytes` may be more than the
/// file has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_model_parse(model: *mut pith_model_t, file: *const c_void, bytes: usize) -> pith_error_t {
    let parse = || {
        let span = Span::new(file, bytes)?;
        memory::check_apart(&[Span::of(model), span])?;
        // SAFETY: the file stays as it is while the model is in use, says the contract.
        Ok(Model::parse(unsafe { memory::read_bytes::<'static>(file, bytes) }?))
    };
    let make = || {
        memory::check_object(model)?;
        let parsed: Result<Result<Model<'static>, Error>, pith_error_t> = parse();
        let loaded = parsed.ok().and_then(Result::ok).map(|model| {
            let end = model.header().file_bytes as usize;
            Loaded { model, file: Span::new(file, end).unwrap_or_default(), decoded: Span::default() }
        });
        let error = parsed.ok().and_then(Result::err);
        // SAFETY: not null and aligned for a `pith_model_t`, which has room for a state, as the assertion says.
        unsafe { model.cast::<State>().write(State { stamp: STAMP, loaded, error }) };
        Ok(parsed?.map(|_| ())?)
    };
    code(make())
}

/// Bytes that the arena of an engine needs; 0 if there is no model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_model_arena_bytes(model: *const pith_model_t) -> usize {
    // SAFETY: the contract of this crate.
    unsafe { number(model, Model::arena_bytes) }
}

/// Bytes that weights which are decoded once take; 0 if there are none, and nothing has to be decoded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_model_decoded_bytes(model: *const pith_model_t) -> usize {
    // SAFETY: the contract of this crate.
    unsafe { number(model, Model::decoded_bytes) }
}

/// Bytes that `pith_model_decode` wants to work in; 0 if nothing is coded. The arena may lend them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_model_scratch_bytes(model: *const pith_model_t) -> usize {
    // SAFETY: the contract of this crate.
    unsafe { number(model, Model::decode_scratch_bytes) }
}

/// Bytes of the workspace in which an engine packs weights for the vectors of this machine; 0 where it has none (every microcontroller).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_model_workspace_bytes(model: *const pith_model_t) -> usize {
    // SAFETY: the contract of this crate.
    unsafe { number(model, workspace_bytes) }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn workspace_bytes(model: &Model<'_>) -> usize {
    pith::Engine::workspace_bytes(model, pith::Isa::detect())
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn workspace_bytes(_: &Model<'_>) -> usize {
    0
}

/// Number of inputs; 0 if there is no model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_model_inputs(model: *const pith_model_t) -> usize {
    // SAFETY: the contract of this crate.
    unsafe { number(model, |model| model.inputs().len()) }
}

/// Number of outputs; 0 if there is no model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_model_outputs(model: *const pith_model_t) -> usize {
    // SAFETY: the contract of this crate.
    unsafe { number(model, |model| model.outputs().len()) }
}

/// Decodes weights into `memory`, `pith_model_decoded_bytes` of them at a multiple of 16 bytes, where they stay as long as the model is in use.
/// `scratch` is needed only now. Not while an engine of the model is in use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_model_decode(
    model: *mut pith_model_t,
    memory: *mut c_void,
    bytes: usize,
    scratch: *mut c_void,
    scratch_bytes: usize,
) -> pith_error_t {
    let work = Span::new(scratch, scratch_bytes).map(Some);
    // SAFETY: the contract of this crate.
    let replaced = unsafe {
        replace(model, Span::new(memory, bytes), work, |model| {
            let (memory, scratch) = (memory::write_bytes(memory, bytes)?, memory::write_bytes(scratch, scratch_bytes)?);
            Ok(model.decode_into(memory, scratch))
        })
    };
    code(replaced)
}

/// Lets the model read weights that were decoded before, for example from flash, after a look at their checksum.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_model_use_decoded(
    model: *mut pith_model_t,
    decoded: *const c_void,
    bytes: usize,
) -> pith_error_t {
    let place = Span::new(decoded, bytes);
    // SAFETY: the contract of this crate; what is decoded stays as it is.
    let replaced = unsafe {
        replace(model, place, Ok(None), |model| Ok(model.with_decoded(memory::read_bytes::<'static>(decoded, bytes)?)))
    };
    code(replaced)
}

/// The model that reads its decoded weights at `place`, which no other memory may share.
///
/// # Safety
/// The contract of this crate.
unsafe fn replace(
    model: *mut pith_model_t,
    place: Result<Span, pith_error_t>,
    scratch: Result<Option<Span>, pith_error_t>,
    decode: impl FnOnce(&Model<'static>) -> Result<Result<Model<'static>, Error>, pith_error_t>,
) -> Result<(), pith_error_t> {
    // SAFETY: the same contract.
    let before = unsafe { loaded(model) }?;
    let place = place?;
    // Who decodes writes, which must not be to what the model reads.
    let [scratch, read] = scratch?.map_or([Span::default(); 2], |scratch| [scratch, before.decoded]);
    memory::check_apart(&[Span::of(model), before.file, place, scratch, read])?;
    let decoded = decode(&before.model)?;
    let after = decoded.map_or(before, |model| Loaded { model, decoded: place, ..before });
    // SAFETY: `loaded` has seen a whole state there.
    unsafe { model.cast::<State>().write(State { stamp: STAMP, loaded: Some(after), error: decoded.err() }) };
    Ok(decoded.map(|_| ())?)
}

/// Why the last `pith_model_parse`, `pith_model_decode` or `pith_model_use_decoded` refused a model, with names and numbers: writes at most `bytes` bytes, a
/// zero at their end included, and returns the length of the whole sentence without it. Empty if there is nothing more to say than `pith_error_text`
/// does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_model_detail(model: *const pith_model_t, text: *mut c_char, bytes: usize) -> usize {
    // SAFETY: the contract of this crate.
    let (state, text) = unsafe { (state(model), memory::write_bytes(text.cast(), bytes)) };
    write_detail(state.ok().and_then(|state| state.error), text.unwrap_or(&mut []))
}
