//! Whole networks with coded weights: the same outputs in every residency, for every layout, on every instruction set of the machine.

use crate::firmware::{networks, samples};
use pith::format::tensor::Constant;
use pith::{Isa, Model};
use quantize::build::{BuildOptions, build, input_slots, prepend_preprocess};
use quantize::data;
use quantize::execute::{Runner, quantize};
use quantize::graph::simplify;
use quantize::onnx::import;
use quantize::pack::{CompressOptions, ModelFile, PackOptions, Residency, pack};
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
