//! The whole path on real networks: ONNX + data → file → runtime, judged by accuracy, SQNR and arena size.

use pith::Model;
use pith_tests::{relative_error, shared, sqnr_db};
use pith_tools::networks::{CLASSIFIERS, Network};
use quantize::build::{BuildOptions, Built, build, input_slots, output_slots, prepend_preprocess};
use quantize::data::{self, Set, Targets};
use quantize::execute::{Runner, output_slots as model_output_slots};
use quantize::graph::{Graph, eval, simplify};
use quantize::onnx::import;
use quantize::pack::ModelFile;

/// Tests run unoptimized, so large sets are thinned.
const MAX_TEST: usize = 800;

fn graph(case: &Network) -> Option<Graph> {
    let graph = simplify(import(&shared(&format!("models/{}.onnx", case.model))?).unwrap());
    Some(prepend_preprocess(graph, &case.recipe().preprocess).unwrap())
}

fn set(graph: &Graph, name: &str) -> Option<Set> {
    let classes = output_slots(graph)[0].shape.iter().product();
    Some(data::load(&shared(name)?, &input_slots(graph), None, classes).unwrap())
}

/// `count` samples, evenly spaced.
fn spaced<T: Clone>(samples: &[T], count: usize) -> Vec<T> {
    let count = count.min(samples.len());
    (0..count).map(|i| samples[i * samples.len() / count].clone()).collect()
}

fn quantized(case: &Network, graph: Graph, calibration: &Set, samples: usize) -> Built {
    let samples = spaced(&calibration.samples, samples);
    build(graph, &samples, &calibration.is_u8, &case.recipe(), BuildOptions::default(), &|_, _| ()).unwrap()
}

fn argmax(values: impl Iterator<Item = f32>) -> usize {
    values.enumerate().fold((0, f32::NEG_INFINITY), |best, (i, v)| if v > best.1 { (i, v) } else { best }).0
}

#[test]
fn classifiers_lose_at_most_half_a_point() {
    for case in &CLASSIFIERS {
        let Some(graph) = graph(case) else { return };
        let (Some(calibration), Some(test)) =
            (set(&graph, &format!("sets/{}.npz", case.calibration)), set(&graph, &format!("sets/{}.npz", case.test)))
        else {
            return;
        };
        let built = quantized(case, graph, &calibration, 100);
        let file = ModelFile::new(&built.packed.bytes);
        let model = Model::parse(file.as_bytes()).unwrap();
        let Some(Targets::Classes(labels)) = &test.targets else { panic!("no labels") };
        let pairs: Vec<_> = spaced(&test.samples.iter().zip(labels).collect::<Vec<_>>(), MAX_TEST);
        let mut runner = Runner::new(&model);
        let (mut float, mut int8) = (0, 0);
        for (sample, label) in &pairs {
            float += usize::from(argmax(eval::run(&built.graph, sample).unwrap()[0].iter().copied()) == **label);
            int8 += usize::from(argmax(runner.run(sample)[0].iter().copied()) == **label);
        }
        let percent = |hits: usize| 100.0 * hits as f64 / pairs.len() as f64;
        println!(
            "{}: float {:.2} %, int8 {:.2} %, {:?}, equalized {}, {:.1} dB, {} bytes, arena {} (bound {})",
            case.model,
            percent(float),
            percent(int8),
            built.choice,
            built.equalized,
            built.sqnr_db,
            built.packed.bytes.len(),
            model.arena_bytes(),
            built.packed.plan.lower_bound,
        );
        // Half a point, but on small sets never less than two samples.
        assert!(percent(int8) >= percent(float) - f64::max(0.5, 200.0 / pairs.len() as f64), "{}", case.model);
        assert!(model.arena_bytes() <= case.max_arena, "{}", case.model);
    }
}

#[test]
fn regressions_keep_twenty_decibels_on_every_output() {
    for (name, max_arena) in [("ad01", 1024), ("yunet_s_320", usize::MAX)] {
        let case = Network { model: name, ..Network::PLAIN };
        let Some(graph) = graph(&case) else { return };
        let Some(golden) = set(&graph, &format!("golden/{name}.npz")) else { return };
        let built = quantized(&case, graph, &golden, 200);
        let file = ModelFile::new(&built.packed.bytes);
        let model = Model::parse(file.as_bytes()).unwrap();
        let Some(Targets::Values(expected)) = &golden.targets else { panic!("no golden outputs") };
        let mut runner = Runner::new(&model);
        let outputs: Vec<_> = golden.samples.iter().map(|sample| runner.run(sample)).collect();
        println!("{name}: {:?}, {} bytes, arena {}", built.choice, built.packed.bytes.len(), model.arena_bytes());
        for (k, slot) in model_output_slots(&model).iter().enumerate() {
            let views: Vec<_> = outputs.iter().map(|o| slot.to_onnx(&o[k])).collect();
            let got = ndarray::stack(ndarray::Axis(0), &views.iter().map(|v| v.view()).collect::<Vec<_>>()).unwrap();
            let expected = expected[k].to_shape(got.shape()).unwrap().into_owned();
            let db = sqnr_db(&got, &expected);
            println!("  {}: {db:.1} dB, largest error {:.3} of the range", slot.name, relative_error(&got, &expected));
            // Objectness on a picture without small faces: all values are below 1e-4, where a logit error of 0.1, less than a step, is one tenth of
            // the value.
            let bound = if ["obj_8", "obj_16"].contains(&slot.name.as_str()) { 17.0 } else { 20.0 };
            assert!(db >= bound, "{name} {}: {db:.1} dB", slot.name);
        }
        assert!(model.arena_bytes() <= max_arena, "{name}");
    }
}
