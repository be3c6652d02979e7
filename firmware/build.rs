//! Puts a board's memory map in the linker's path, and a model with its inputs into the program.
//!
//! `PITH_BOARD` names a file `boards/*.x`. `PITH_MODEL` is a `.pith` file, `PITH_INPUTS` the raw int8 inputs of one sample after another.
//! The model is checked here, so that a bad one does not reach a device. Without them the program has no model.

use std::{env, error::Error, fs, path::PathBuf};

fn main() {
    if let Err(error) = generate() {
        println!("cargo::error={error}");
        std::process::exit(1);
    }
}

fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok()
}

fn generate() -> Result<(), Box<dyn Error>> {
    println!("cargo::rustc-check-cfg=cfg(armv6m)");
    if env::var("TARGET")?.starts_with("thumbv6m") {
        println!("cargo::rustc-cfg=armv6m");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // As the library of a board's programs it needs neither; `boards/*/` have memory maps of their own.
    let Some(board) = variable("PITH_BOARD") else {
        fs::write(out.join("embedded.rs"), source(Sizes::default(), 0, 0, "[]", 0, "[]"))?;
        return Ok(());
    };
    let map = fs::read_to_string(format!("boards/{board}.x")).map_err(|e| format!("boards/{board}.x: {e}"))?;
    fs::write(out.join("memory.x"), map + &fs::read_to_string("boards/model.x")?)?;
    println!("cargo::rustc-link-search={}", out.display());
    println!("cargo::rustc-link-arg-bins=-Tlink.x");
    println!("cargo::rustc-link-arg-bins=-Tdefmt.x");
    println!("cargo::rustc-link-arg-bins=--nmagic");
    println!("cargo::rerun-if-changed=boards");

    let embedded = match (variable("PITH_MODEL"), variable("PITH_INPUTS")) {
        (Some(model), Some(inputs)) => embed(&model, &inputs)?,
        _ => source(Sizes::default(), 0, 0, "[]", 0, "[]"),
    };
    fs::write(out.join("embedded.rs"), embedded)?;
    Ok(())
}

/// A checked model and inputs that it can read.
fn embed(model: &str, inputs: &str) -> Result<String, Box<dyn Error>> {
    println!("cargo::rerun-if-changed={model}");
    println!("cargo::rerun-if-changed={inputs}");
    let bytes = fs::read(model).map_err(|e| format!("{model}: {e}"))?;
    let mut buffer = vec![0u8; bytes.len() + 15];
    let start = buffer.as_ptr().align_offset(16);
    let aligned = &mut buffer[start..start + bytes.len()];
    aligned.copy_from_slice(&bytes);
    // Of several precisions the finest; what stands before it is needed to decode it.
    let mut precisions = pith::precisions(aligned);
    let (mut coarser, mut end, mut parsed) = (0, 0, Err("it is empty".into()));
    while let Some(next) = precisions.next() {
        parsed = next.map_err(|e| e.to_string());
        (coarser, end) = (end, precisions.bytes());
    }
    let parsed = parsed.map_err(|e: String| format!("{model}: {e}"))?;
    let sizes = Sizes {
        arena: parsed.arena_bytes(),
        decoded: parsed.decoded_bytes(),
        scratch: if parsed.decoded_bytes() > 0 { parsed.decode_scratch_bytes() } else { 0 },
        coarser,
    };
    let input_bytes: usize = parsed.inputs().iter().map(|p| parsed.tensor(p.tensor).len as usize).sum();
    let given = fs::metadata(inputs).map_err(|e| format!("{inputs}: {e}"))?.len() as usize;
    if input_bytes == 0 || !given.is_multiple_of(input_bytes) {
        return Err(format!("{inputs}: {given} bytes are no whole number of inputs of {input_bytes} bytes").into());
    }
    let include = |path: &str| format!("*include_bytes!({path:?})");
    let uses = pith::uses::uses(&aligned[coarser..]);
    Ok(source(sizes, uses, bytes.len(), &include(model), given, &include(inputs)))
}

/// Memory that a model wants: to run in, for weights that are decoded once, and to decode them in; and how much of its file are coarser precisions.
#[derive(Default)]
struct Sizes {
    arena: usize,
    decoded: usize,
    scratch: usize,
    coarser: usize,
}

fn source(sizes: Sizes, uses: u64, model_bytes: usize, model: &str, input_bytes: usize, inputs: &str) -> String {
    let Sizes { arena, decoded, scratch, coarser } = sizes;
    let memory = arena.max(scratch);
    format!(
        "/// Bytes of the arena, which also serves to decode weights.\npub const ARENA_BYTES: usize = {memory};\n\
         /// Bytes of weights that are decoded once.\npub const DECODED_BYTES: usize = {decoded};\n\
         /// Bytes of the file that are coarser precisions.\npub const COARSER_BYTES: usize = {coarser};\n\
         /// What the model uses of the runtime.\npub const USES: u64 = {uses};\n\
         #[unsafe(link_section = \".model\")]\nstatic MODEL_FILE: Aligned<[u8; {model_bytes}]> = Aligned({model});\n\
         #[unsafe(link_section = \".model.inputs\")]\nstatic INPUT_FILE: [u8; {input_bytes}] = {inputs};\n"
    )
}
