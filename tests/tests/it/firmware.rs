//! The same bytes on the desktop and on all emulated cores, operator by operator and for whole networks; the arena a core touches is the planned
//! one.

use ndarray::ArrayD;
use pith::Model;
use pith::format::NONE;
use pith::format::tensor::Constant;
use pith_tests::{here, shared};
use pith_tools::cases::check;
use pith_tools::core::{Core, Machine};
use pith_tools::has;
use pith_tools::qemu::run_on_core;
use pith_tools::setup::has_target;
use quantize::build::{BuildOptions, Built, build, input_slots, prepend_preprocess};
use quantize::data;
use quantize::execute::{Runner, quantize};
use quantize::graph::simplify;
use quantize::lower::Program;
use quantize::onnx::import;
use quantize::pack::{CompressOptions, ModelFile, PackOptions, Residency, pack, pack_precisions};
use quantize::recipe::Recipe;
use quantize::report::layers::Summary;
use std::path::{Path, PathBuf};

const SAMPLES: usize = 20;

/// A network with the set that calibrates it and feeds it; `scale` is the preprocessing.
pub(crate) fn networks() -> Vec<(PathBuf, PathBuf, f64)> {
    let digits = here().join("models/digits");
    let mut all = vec![(digits.join("digits.onnx"), digits.join("digits_test.npz"), 1.0 / 16.0)];
    for (model, set) in
        [("ic_resnet8", "sets/cifar10_lossless_test_200"), ("kws_ref", "sets/kws_calib_200"), ("ad01", "golden/ad01")]
    {
        if let (Some(model), Some(set)) = (shared(&format!("models/{model}.onnx")), shared(&format!("{set}.npz"))) {
            all.push((model, set, 1.0));
        }
    }
    all
}

/// Exactly `SAMPLES` samples: the set's first, and where it has fewer, scaled copies of them.
pub(crate) fn samples(all: &[Vec<ArrayD<f32>>]) -> Vec<Vec<ArrayD<f32>>> {
    let copy = |i: usize| {
        let factor = 1.0 - 0.1 * (i / all.len()) as f32;
        all[i % all.len()].iter().map(|x| x * factor).collect()
    };
    (0..SAMPLES).map(copy).collect()
}

/// The cores that can be emulated here.
fn cores() -> Vec<Core> {
    let is_here = |core: &Core| {
        let Machine { emulator, target, .. } = core.machine(0, 0);
        let is_here = has(emulator) && has_target(target);
        if !is_here {
            println!(
                "skipped: {} has no {emulator} or no target {target}; cargo xtask setup installs them",
                core.name()
            );
        }
        is_here
    };
    Core::ALL.into_iter().filter(is_here).collect()
}

/// What `f` gives for every core, two at a time, as the reference machine has two cores.
fn on_each<T: Send>(cores: &[Core], f: impl Fn(Core) -> T + Sync) -> Vec<T> {
    let f = &f;
    let pair = |pair: &[Core]| {
        std::thread::scope(|scope| {
            let running: Vec<_> = pair.iter().map(|&core| scope.spawn(move || f(core))).collect();
            running.into_iter().map(|r| r.join().expect("a core failed")).collect::<Vec<_>>()
        })
    };
    cores.chunks(2).flat_map(pair).collect()
}

#[test]
fn every_operator_is_exact_on_every_core() {
    on_each(&cores(), |core| {
        let verdict = check(core, 600, 1).unwrap();
        assert_eq!(verdict.failures, [""; 0], "{}", core.name());
        println!("{}: {} cases passed", core.name(), verdict.count);
    });
}

#[test]
fn coded_weights_give_the_desktop_bytes() {
    let cores: Vec<Core> = cores().into_iter().filter(|core| [Core::M0, Core::M4, Core::M55].contains(core)).collect();
    for (path, set, scale) in networks().into_iter().take(if cores.is_empty() { 0 } else { 2 }) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let Network { built, inputs, expected } = network(&path, &set, scale, 4);
        on_each(&cores, |core| {
            // Decoding is the same code everywhere, what differs is the kernels that read its result: one core tries all ways.
            let residencies: &[Residency] = match core {
                Core::M4 => &[Residency::Ram, Residency::Flash, Residency::Tile],
                Core::M0 => &[Residency::Tile],
                _ => &[Residency::Ram],
            };
            for &residency in residencies {
                let compress = CompressOptions { level: 1, residency, max_instructions: None };
                let options = PackOptions { isa: core.isa(), compress, ..PackOptions::default() };
                let file = ModelFile::new(&pack(built.packed.program.clone(), options).unwrap().bytes);
                let model = Model::parse(file.as_bytes()).unwrap();
                let coded = model.constants().iter().filter(|c| c.is_coded()).count();
                let run = run_on_core(file.as_bytes(), &inputs, core, false).unwrap();
                assert_eq!(run.outputs, expected, "{name} on {} in {residency:?}", core.name());
                println!(
                    "{name} on {} in {residency:?}: {coded} tensors coded, {} B decoded once, {} B of stack, {} of {} B of arena touched",
                    core.name(),
                    model.decoded_bytes(),
                    run.stack_bytes,
                    run.arena_touched,
                    model.arena_bytes()
                );
                assert!(coded > 0 && run.arena_touched <= model.arena_bytes(), "{name} on {}", core.name());
            }
        });
    }
}

#[test]
fn widths_without_kernels_give_the_desktop_bytes() {
    let cores: Vec<Core> = cores().into_iter().filter(|core| [Core::M0, Core::M4, Core::M55].contains(core)).collect();
    let (path, set, scale) = networks().swap_remove(0);
    for bits in [3, 5] {
        let Network { built, inputs, expected } = network_of(&path, &set, scale, 4, bits);
        on_each(&cores, |core| {
            let options = PackOptions { isa: core.isa(), ..PackOptions::default() };
            let file = ModelFile::new(&pack(built.packed.program.clone(), options).unwrap().bytes);
            let model = Model::parse(file.as_bytes()).unwrap();
            let weights = |kind: u8| model.constants().iter().filter(move |c| c.kind == kind);
            let in_tiles = weights(Constant::KIND_BLOCKS).filter(|c| c.is_in_tiles()).count();
            println!(
                "{bits} bits on {}: {in_tiles} of {} in tiles",
                core.name(),
                weights(Constant::KIND_BLOCKS).count()
            );
            let run = run_on_core(file.as_bytes(), &inputs, core, false).unwrap();
            assert_eq!(run.outputs, expected, "{bits} bits on {}", core.name());
            assert!(in_tiles > 0 || core != Core::M4 || bits != 3, "no layer is worth a tile");
        });
    }
}

/// Half as many bits of every weight: what the same network could be in a coarser precision.
fn coarser(program: &Program) -> Program {
    let mut coarse = program.clone();
    for constant in coarse.constants.iter_mut().filter(|c| c.record.kind == Constant::KIND_WEIGHTS) {
        // The highest level stands for all above, as where a network is rounded to few bits.
        let level = |w: i8| (i32::from(w) + 8).div_euclid(16).min(7) as i8;
        constant.bytes.iter_mut().for_each(|byte| *byte = level(*byte as i8) as u8);
    }
    coarse
}

#[test]
fn precisions_give_the_desktop_bytes() {
    let cores: Vec<Core> = cores().into_iter().filter(|core| [Core::M0, Core::M4].contains(core)).collect();
    let (path, set, scale) = networks().swap_remove(0);
    let Network { built, inputs, expected } = network(&path, &set, scale, 4);
    on_each(&cores, |core| {
        let compress = CompressOptions { level: 3, residency: Residency::Ram, max_instructions: None };
        let options = PackOptions { isa: core.isa(), compress, ..PackOptions::default() };
        let programs = vec![coarser(&built.packed.program), built.packed.program.clone()];
        let packed = pack_precisions(programs, options, &|_, _| ()).unwrap();
        let file = ModelFile::new(&packed);
        let model = file.finest().unwrap();
        let refined: u32 = model.constants().iter().filter(|c| c.refines != NONE).map(|c| c.len).sum();
        assert!(refined > 1000, "{}", core.name());
        let run = run_on_core(file.as_bytes(), &inputs, core, true).unwrap();
        assert_eq!(run.outputs, expected, "{}", core.name());
        let summary = Summary::of_model(&model);
        println!(
            "{}: {refined} of {} B refined, {} instructions ({} predicted on a Cortex-M4)",
            core.name(),
            model.decoded_bytes(),
            run.decoding,
            summary.decode_instructions
        );
    });
}

/// A built network, what it is fed, and what it gives on the desktop.
pub(crate) struct Network {
    pub(crate) built: Built,
    pub(crate) inputs: Vec<Vec<Vec<i8>>>,
    pub(crate) expected: Vec<Vec<Vec<i8>>>,
}

pub(crate) fn network(path: &Path, set: &Path, scale: f64, count: usize) -> Network {
    network_of(path, set, scale, count, 8)
}

/// With weights of so many bits.
fn network_of(path: &Path, set: &Path, scale: f64, count: usize, bits: u8) -> Network {
    let mut recipe = Recipe::default();
    recipe.preprocess.scale = scale;
    recipe.quantize.weight_bits = bits;
    let graph = prepend_preprocess(simplify(import(path).unwrap()), &recipe.preprocess).unwrap();
    let set = data::load(set, &input_slots(&graph), None, usize::MAX).unwrap();
    let samples = samples(&set.samples);
    let built = build(graph, &samples, &set.is_u8, &recipe, BuildOptions::default(), &|_, _| ()).unwrap();
    let file = ModelFile::new(&built.packed.bytes);
    let model = Model::parse(file.as_bytes()).unwrap();
    let quantized = |s: &Vec<ArrayD<f32>>| model.inputs().iter().zip(s).map(|(p, x)| quantize(p, x)).collect();
    let inputs: Vec<Vec<Vec<i8>>> = samples.iter().take(count).map(quantized).collect();
    let mut runner = Runner::new(&model);
    let expected = inputs.iter().map(|i| runner.run_raw(i)).collect();
    Network { built, inputs, expected }
}

#[test]
fn all_cores_give_the_desktop_bytes() {
    let cores = cores();
    for (path, set, scale) in networks() {
        let Network { built, inputs, expected } = network(&path, &set, scale, SAMPLES);
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        on_each(&cores, |core| {
            // Each core gets the file that is laid out for it; the desktop takes its weights out of any layout.
            let options = PackOptions { isa: core.isa(), ..PackOptions::default() };
            let file = ModelFile::new(&pack(built.packed.program.clone(), options).unwrap().bytes);
            let model = Model::parse(file.as_bytes()).unwrap();
            assert_eq!(
                Runner::new(&model).run_raw(&inputs[0]),
                expected[0],
                "{name} for {} on the desktop",
                core.name()
            );
            let run = run_on_core(file.as_bytes(), &inputs, core, false).unwrap();
            assert_eq!(run.outputs, expected, "{name} on {}", core.name());
            println!(
                "{name} on {} ({}): {} samples equal, {} B of stack, {} of {} B of arena touched",
                core.name(),
                run.machine.machine,
                run.outputs.len(),
                run.stack_bytes,
                run.arena_touched,
                model.arena_bytes()
            );
            assert!(run.arena_touched <= model.arena_bytes(), "{name} on {}", core.name());
            // Measured 6 to 14 KB.
            let limit = if name == "ad01" { 8 << 10 } else { 16 << 10 };
            assert!(core != Core::M4 || run.code_bytes <= limit, "{name}: {} B of code", run.code_bytes);
        });
    }
}
