//! A model as a constant of the program: what it needs and what it looks like, read when the program is compiled.
//!
//! [`crate::include_model!`] makes a module of it. Here are the functions that read the file for it; a file that is none, or that does not fit, stops
//! the compiler with a sentence. The whole check is [`crate::Model::parse`]'s, once, when the program runs, or where its build script has run it
//! before, never ([`crate::Model::trusted`]).

use crate::format::header::Header;
use crate::format::tensor::{self, Constant, Tensor};
use crate::format::{MAGIC, MAX_RANK, VERSION};
use crate::uses::{byte_at, u16_at, u32_at};
use core::mem::offset_of;

/// An input or output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Port {
    /// Number of int8 values.
    pub len: usize,
    /// Axes in `dims`.
    pub rank: usize,
    /// Shape without batch, `[h, w, c]` of images, unused axes 1.
    pub dims: [usize; MAX_RANK],
    /// Real value of one step: `real = scale * (q - zero_point)`.
    pub scale: f32,
    /// The integer that stands for real zero.
    pub zero_point: i32,
}

/// The file as it is, if it begins as one of this version, is as long as it says, and has its records inside.
///
/// # Panics
///
/// Else, which stops the compiler.
pub const fn checked(file: &[u8]) -> &[u8] {
    let is_named = file.len() >= size_of::<Header>()
        && file[0] == MAGIC[0]
        && file[1] == MAGIC[1]
        && file[2] == MAGIC[2]
        && file[3] == MAGIC[3];
    assert!(is_named, "the file is no .pith model");
    let is_ours = u16_at(file, offset_of!(Header, version)) == VERSION as usize;
    assert!(is_ours, "the model has another version of the format; build it again");
    let needed = u32_at(file, offset_of!(Header, file_bytes));
    if file.len() < needed {
        let text = Text::new().text("the model is cut off: ").number(file.len()).text(" bytes of ").number(needed);
        panic!("{}", text.text("; copy or build it again").as_str());
    }
    assert!(has_records(file), "the model is damaged: a record lies outside of the file; copy or build it again");
    file
}

/// Whether all that is read here lies in the file.
const fn has_records(file: &[u8]) -> bool {
    let tensors = u16_at(file, offset_of!(Header, tensor_count));
    let constants = u16_at(file, offset_of!(Header, constant_count));
    let ports = inputs(file) + outputs(file);
    let is_whole = lies_in(file, offset_of!(Header, tensors_offset), tensors * size_of::<Tensor>())
        && lies_in(file, offset_of!(Header, constants_offset), constants * size_of::<Constant>())
        && lies_in(file, offset_of!(Header, ports_offset), ports * size_of::<tensor::Port>())
        && lies_in(file, offset_of!(Header, ops_offset), u32_at(file, offset_of!(Header, ops_bytes)));
    let mut i = 0;
    while is_whole && i < ports {
        if tensor_of(file, i) >= tensors {
            return false;
        }
        i += 1;
    }
    is_whole
}

/// Whether so many bytes, from the offset that a field of the header says, are in the file.
const fn lies_in(file: &[u8], field: usize, bytes: usize) -> bool {
    let offset = u32_at(file, field);
    offset <= file.len() && bytes <= file.len() - offset
}

/// Bytes of the arena.
pub const fn arena_bytes(file: &[u8]) -> usize {
    u32_at(file, offset_of!(Header, arena_bytes))
}

/// Bytes of weights that are decoded once, 0 if there are none.
pub const fn decoded_bytes(file: &[u8]) -> usize {
    u32_at(file, offset_of!(Header, decoded_bytes))
}

/// Bytes of RAM: the arena, and weights that are decoded into RAM.
pub const fn ram_bytes(file: &[u8]) -> usize {
    arena_bytes(file).saturating_add(if decodes_to_flash(file) { 0 } else { decoded_bytes(file) })
}

/// Bytes of flash: the file, and weights that are decoded into flash.
pub const fn flash_bytes(file: &[u8]) -> usize {
    file.len().saturating_add(if decodes_to_flash(file) { decoded_bytes(file) } else { 0 })
}

/// Whether weights that are decoded once belong in flash.
const fn decodes_to_flash(file: &[u8]) -> bool {
    let constants = u32_at(file, offset_of!(Header, constants_offset));
    let mut i = 0;
    while i < u16_at(file, offset_of!(Header, constant_count)) {
        let at = constants + i * size_of::<Constant>();
        if byte_at(file, at + offset_of!(Constant, encoding)) == Constant::ENCODING_CODED
            && u16_at(file, at + offset_of!(Constant, residency)) == Constant::IN_FLASH as usize
        {
            return true;
        }
        i += 1;
    }
    false
}

/// Number of inputs.
pub const fn inputs(file: &[u8]) -> usize {
    byte_at(file, offset_of!(Header, input_count)) as usize
}

/// Number of outputs.
pub const fn outputs(file: &[u8]) -> usize {
    byte_at(file, offset_of!(Header, output_count)) as usize
}

/// `N` inputs or outputs from number `first` on, outputs being counted after inputs.
pub const fn ports<const N: usize>(file: &[u8], first: usize) -> [Port; N] {
    let empty = Port { len: 0, rank: 0, dims: [1; MAX_RANK], scale: 0.0, zero_point: 0 };
    let (mut all, mut i) = ([empty; N], 0);
    while i < N {
        all[i] = port(file, first + i);
        i += 1;
    }
    all
}

const fn port_at(file: &[u8], index: usize) -> usize {
    u32_at(file, offset_of!(Header, ports_offset)) + index * size_of::<tensor::Port>()
}

/// Index of the tensor of a port.
const fn tensor_of(file: &[u8], index: usize) -> usize {
    u16_at(file, port_at(file, index) + offset_of!(tensor::Port, tensor))
}

const fn port(file: &[u8], index: usize) -> Port {
    let at = port_at(file, index);
    let tensor = u32_at(file, offset_of!(Header, tensors_offset)) + tensor_of(file, index) * size_of::<Tensor>();
    let (mut dims, mut axis) = ([1; MAX_RANK], 0);
    while axis < MAX_RANK {
        dims[axis] = u16_at(file, tensor + offset_of!(Tensor, dims) + 2 * axis);
        axis += 1;
    }
    Port {
        len: u32_at(file, tensor + offset_of!(Tensor, len)),
        rank: byte_at(file, tensor + offset_of!(Tensor, rank)) as usize,
        dims,
        scale: f32::from_bits(u32_at(file, at + offset_of!(tensor::Port, scale)) as u32),
        zero_point: u32_at(file, at + offset_of!(tensor::Port, zero_point)) as u32 as i32,
    }
}

/// Nothing, if `needed` bytes of what are at most `given`.
///
/// # Panics
///
/// Else, which stops the compiler: `the model needs 64 bytes of RAM, 14 more than the 50 that it may have`.
pub const fn fits(needed: usize, given: usize, what: &str) {
    if needed > given {
        let text = Text::new().text("the model needs ").number(needed).text(" bytes of ").text(what).text(", ");
        let text = text.number(needed - given).text(" more than the ").number(given).text(" that it may have");
        panic!("{}", text.as_str());
    }
}

/// A sentence that is put together by the compiler; what does not fit is cut off.
struct Text {
    bytes: [u8; 160],
    len: usize,
}

impl Text {
    const fn new() -> Text {
        Text { bytes: [0; 160], len: 0 }
    }

    const fn byte(mut self, byte: u8) -> Text {
        if self.len < self.bytes.len() {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        self
    }

    const fn text(mut self, text: &str) -> Text {
        let mut i = 0;
        while i < text.len() {
            self = self.byte(text.as_bytes()[i]);
            i += 1;
        }
        self
    }

    const fn number(self, n: usize) -> Text {
        let text = if n >= 10 { self.number(n / 10) } else { self };
        text.byte(b'0' + (n % 10) as u8)
    }

    const fn as_str(&self) -> &str {
        match core::str::from_utf8(self.bytes.split_at(self.len).0) {
            Ok(text) => text,
            Err(_) => "the model does not fit",
        }
    }
}

/// The bytes of a model file, aligned as [`Model::parse`](crate::Model::parse) wants them, or a module that knows what the model needs.
///
/// `include_model!("digits.pith")` is a `&'static [u8]`. With a name, and limits of what it may take if you like,
///
/// ```
/// pith::include_model!(pub mod tiny = "../tests/golden/tiny.pith", ram <= 1024, flash <= 4096);
///
/// let mut arena = tiny::ARENA;
/// let model = tiny::model()?;
/// let mut engine = tiny::Engine::using(&model, &mut arena.0)?;
/// let input: &mut [i8; tiny::INPUTS[0].len] = engine.input(0).try_into().unwrap();
/// *input = [3, 3, 3];
/// engine.run();
/// assert_eq!(engine.output(0), [7, -15]);
/// assert_eq!(tiny::OUTPUTS[0].len, 2);
/// # Ok::<(), pith::Error>(())
/// ```
///
/// the program links only what the model uses, arrays have its sizes, and a model that has become too large does not compile:
///
/// ```compile_fail
/// pith::include_model!(mod tiny = "../tests/golden/tiny.pith", flash <= 100);
/// # fn main() { tiny::model().unwrap(); }
/// ```
///
/// Paths are relative to the source file, limits are any constants in scope. RAM is the arena, flash is the file; weights that are decoded once
/// count where they are decoded to. Memory to decode in ([`Model::decode_scratch_bytes`](crate::Model::decode_scratch_bytes)) is not counted.
#[macro_export]
macro_rules! include_model {
    ($(#[$attribute:meta])* $visible:vis mod $name:ident = $path:literal $(, ram <= $ram:expr)? $(, flash <= $flash:expr)? $(,)?) => {
        $(#[$attribute])*
        #[allow(dead_code)]
        $visible mod $name {
            // Not a constant, of which every codegen unit would have its own copy.
            static ALIGNED: $crate::Aligned<[u8; include_bytes!($path).len()]> = $crate::Aligned(*include_bytes!($path));

            /// The model file.
            pub const FILE: &[u8] = $crate::embed::checked(&ALIGNED.0);

            /// What it uses of the runtime, see `pith::uses`.
            pub const USES: u64 = $crate::uses::uses(FILE);

            /// Bytes of its arena.
            pub const ARENA_BYTES: usize = $crate::embed::arena_bytes(FILE);

            /// Bytes of weights that are decoded once, see `pith::Model::decode_into`; 0 if there are none.
            pub const DECODED_BYTES: usize = $crate::embed::decoded_bytes(FILE);

            /// Bytes of RAM that it takes: the arena, and weights that are decoded into RAM.
            pub const RAM_BYTES: usize = $crate::embed::ram_bytes(FILE);

            /// Bytes of flash that it takes: the file, and weights that are decoded into flash.
            pub const FLASH_BYTES: usize = $crate::embed::flash_bytes(FILE);

            /// What the caller feeds.
            pub const INPUTS: [$crate::embed::Port; $crate::embed::inputs(FILE)] = $crate::embed::ports(FILE, 0);

            /// What the caller reads.
            pub const OUTPUTS: [$crate::embed::Port; $crate::embed::outputs(FILE)] =
                $crate::embed::ports(FILE, $crate::embed::inputs(FILE));

            /// Memory that an engine of it runs in.
            pub type Arena = $crate::Aligned<[u8; ARENA_BYTES]>;

            /// An arena; its content does not matter.
            pub const ARENA: Arena = $crate::Aligned([0; ARENA_BYTES]);

            /// An engine that has what the model uses and no more.
            pub type Engine<'m, 'a> = $crate::Engine<'m, 'a, USES>;

            /// The checked model.
            pub fn model() -> Result<$crate::Model<'static>, $crate::Error> {
                $crate::Model::parse_using::<USES>(FILE)
            }
        }

        // Outside of the module, where the names in limits mean what they mean to the caller.
        $(#[$attribute])*
        const _: () = {
            $($crate::embed::fits($name::RAM_BYTES, $ram, "RAM");)?
            $($crate::embed::fits($name::FLASH_BYTES, $flash, "flash");)?
        };
    };
    ($path:expr $(,)?) => {{
        static MODEL: &$crate::Aligned<[u8]> = &$crate::Aligned(*include_bytes!($path));
        &MODEL.0
    }};
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;
    use std::string::String;

    crate::include_model!(mod tiny = "../tests/golden/tiny.pith", ram <= 64 * 1024);
    const FLASH: usize = 1 << 20;
    crate::include_model!(mod every_operator = "../tests/golden/every_operator.pith", flash <= FLASH);
    crate::include_model!(mod block_sparse = "../tests/golden/block_sparse.pith");
    crate::include_model!(#[cfg(not(test))] mod absent = "../tests/golden/tiny.pith", ram <= 0);

    fn is_as_parsed(file: &[u8], sizes: [usize; 2], inputs: &[Port], outputs: &[Port]) {
        let model = Model::parse(file).unwrap();
        assert_eq!(sizes, [model.arena_bytes(), model.decoded_bytes()]);
        assert_eq!([inputs.len(), outputs.len()], [model.inputs().len(), model.outputs().len()]);
        for (port, expected) in inputs.iter().chain(outputs).zip(model.inputs().iter().chain(model.outputs())) {
            let tensor = model.tensor(expected.tensor);
            assert_eq!((port.len, port.rank), (tensor.len as usize, tensor.rank as usize));
            assert_eq!(port.dims, tensor.dims.map(usize::from));
            assert_eq!((port.scale, port.zero_point), (expected.scale, expected.zero_point));
        }
    }

    #[test]
    fn constants_are_what_the_model_says() {
        is_as_parsed(tiny::FILE, [tiny::ARENA_BYTES, tiny::DECODED_BYTES], &tiny::INPUTS, &tiny::OUTPUTS);
        let sizes = [every_operator::ARENA_BYTES, every_operator::DECODED_BYTES];
        is_as_parsed(every_operator::FILE, sizes, &every_operator::INPUTS, &every_operator::OUTPUTS);
        let sizes = [block_sparse::ARENA_BYTES, block_sparse::DECODED_BYTES];
        is_as_parsed(block_sparse::FILE, sizes, &block_sparse::INPUTS, &block_sparse::OUTPUTS);
        assert!(tiny::model().is_ok() && every_operator::model().is_ok() && block_sparse::model().is_ok());
    }

    #[test]
    fn decoded_weights_count_where_they_lie() {
        let mut file = tiny::FILE.to_vec();
        file[offset_of!(Header, decoded_bytes)] = 100;
        let constant = u32_at(&file, offset_of!(Header, constants_offset));
        file[constant + offset_of!(Constant, encoding)] = Constant::ENCODING_CODED;
        let (arena, len) = (tiny::ARENA_BYTES, file.len());
        assert_eq!([ram_bytes(&file), flash_bytes(&file)], [arena + 100, len]);
        file[constant + offset_of!(Constant, residency)] = Constant::IN_FLASH as u8;
        assert_eq!([ram_bytes(&file), flash_bytes(&file)], [arena, len + 100]);
    }

    fn said(f: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let panic = std::panic::catch_unwind(f).unwrap_err();
        panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|&text| text.into())).unwrap()
    }

    #[test]
    fn what_does_not_fit_says_by_how_much() {
        fits(50, 50, "RAM");
        let expected = "the model needs 12064 bytes of RAM, 14 more than the 12050 that it may have";
        assert_eq!(said(|| fits(12064, 12050, "RAM")), expected);
    }

    #[test]
    fn what_is_no_model_is_said() {
        let file = tiny::FILE;
        assert_eq!(checked(file), file);
        for wrong in [&b"PITH"[..], &[0; 500], &file[..10]] {
            assert!(said(|| _ = checked(wrong)).contains("no .pith model"));
        }
        let cut = said(|| _ = checked(&file[..299]));
        assert_eq!(cut, "the model is cut off: 299 bytes of 300; copy or build it again");
        let longer = [file, &[0; 16]].concat();
        assert_eq!(checked(&longer), longer);
        let mut other = file.to_vec();
        other[offset_of!(Header, version)] += 1;
        assert!(said(move || _ = checked(&other)).contains("another version"));
    }

    #[test]
    fn records_outside_of_the_file_are_said() {
        let ports = u32_at(tiny::FILE, offset_of!(Header, ports_offset));
        let offsets = [
            offset_of!(Header, tensors_offset),
            offset_of!(Header, constants_offset),
            offset_of!(Header, ops_offset),
            offset_of!(Header, ports_offset),
        ];
        let fields = offsets.map(|field| field + 3).into_iter().chain([ports + offset_of!(tensor::Port, tensor) + 1]);
        for high_byte in fields {
            let mut file = tiny::FILE.to_vec();
            file[high_byte] = 255;
            assert!(said(move || _ = checked(&file)).contains("outside of the file"));
        }
    }
}
