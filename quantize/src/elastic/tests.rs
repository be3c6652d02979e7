//! Supernets: what training simulates against what is built, files that come back the same, and sub-networks that work without training.

use super::*;
use crate::build::{BuildOptions, finish_given, prepare_given};
use crate::data::Targets;
use crate::execute::Runner;
use crate::graph::{Clamp, Op};
use crate::graph::{Graph, Window, eval, simplify};
use crate::pack::ModelFile;
use crate::random::Random;
use crate::recipe::Recipe;
use crate::scheme::{LayerOptions, QuantOptions, Rounding, quantize, quantized_clamp};
use crate::train::{Data, Device, Hooks, TrainError, evaluate};
use ndarray::{ArrayD, IxDyn};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// A network for inference, its clamps fused and its batch norms folded: `conv - relu - depthwise - relu6 - conv + skip - mean - linear`.
fn network(seed: u64) -> Graph {
    let mut random = Random::new(seed, 0);
    let mut g = Graph { name: "small".into(), ..Graph::default() };
    let window = Window { kernel: [3, 3], stride: [1, 1], dilation: [1, 1], pad: [1; 4] };
    let mut conv = |oc: usize, ic: usize, groups: usize, clamp: Clamp| {
        let shape = IxDyn(&[oc, 3, 3, ic / groups]);
        let size = (2.0 / (9 * ic / groups) as f32).sqrt();
        let weight = ArrayD::from_shape_simple_fn(shape, || size * random.normal());
        let bias = (0..oc).map(|_| 0.1 * random.normal()).collect();
        Op::Conv2d { window, groups, weight, bias, clamp }
    };
    let x = g.add_input("x", &[1, 8, 8, 1]);
    let first = g.push("first", conv(8, 1, 1, Clamp::RELU), &[x]).unwrap();
    let x = g.push("depthwise", conv(8, 8, 8, Clamp::RELU6), &[first]).unwrap();
    let x = g.push("middle", conv(8, 8, 1, Clamp::NONE), &[x]).unwrap();
    let add = Op::Binary { kind: crate::graph::BinaryKind::Add, clamp: Clamp::RELU };
    let x = g.push("add", add, &[x, first]).unwrap();
    let x = g.push("mean", Op::Mean { axes: vec![1, 2] }, &[x]).unwrap();
    let x = g.push("flat", Op::Reshape { shape: vec![1, 8] }, &[x]).unwrap();
    let weight = ArrayD::from_shape_simple_fn(IxDyn(&[2, 8]), || random.normal());
    let y = g.push("last", Op::Linear { weight, bias: vec![0.0; 2], clamp: Clamp::NONE }, &[x]).unwrap();
    g.add_output("y", y);
    simplify(g)
}

/// Two dense layers of 4,096 and 128 weights.
fn dense_network() -> Graph {
    let mut random = Random::new(1, 0);
    let mut g = Graph { name: "dense".into(), ..Graph::default() };
    let mut linear = |outputs: usize, clamp: Clamp| {
        let weight = ArrayD::from_shape_simple_fn(IxDyn(&[outputs, 64]), || 0.18 * random.normal());
        Op::Linear { weight, bias: vec![0.0; outputs], clamp }
    };
    let x = g.add_input("x", &[1, 8, 8, 1]);
    let x = g.push("flat", Op::Reshape { shape: vec![1, 64] }, &[x]).unwrap();
    let x = g.push("first", linear(64, Clamp::RELU), &[x]).unwrap();
    let y = g.push("last", linear(2, Clamp::NONE), &[x]).unwrap();
    g.add_output("y", y);
    simplify(g)
}

/// Horizontal or vertical stripes in noise.
fn stripes(count: usize) -> (Vec<Vec<ArrayD<f32>>>, Targets) {
    let mut random = Random::new(5, 1);
    let labels: Vec<usize> = (0..count).map(|i| i % 2).collect();
    let sample = |&label: &usize| {
        let picture = ArrayD::from_shape_fn(IxDyn(&[1, 8, 8, 1]), |i| {
            let along = if label == 0 { i[1] } else { i[2] };
            (along % 2) as f32 + 0.3 * random.normal()
        });
        vec![picture]
    };
    (labels.iter().map(sample).collect(), Targets::Classes(labels))
}

fn options(epochs: usize) -> ElasticOptions {
    let mut options = ElasticOptions { bits: vec![8, 4, 3, 2], recalibrate: 64, ..ElasticOptions::default() };
    (options.train.epochs, options.train.batch, options.train.rate) = (epochs, 16, Some(3e-3));
    options
}

fn trained(data: &Data<'_>, options: &ElasticOptions) -> Supernet {
    let supernet = Supernet::new(&network(1), data, options).unwrap();
    let stop = AtomicBool::new(false);
    let mut hooks = Hooks { step: &mut |_| (), report: &|_| (), stop: &stop, checkpoint: None };
    train(supernet, data, None, &Device::cpu(), &mut hooks, None).unwrap().supernet
}

fn form(bits: u8, granularity: Granularity, symmetric: bool) -> Form {
    Form { bits, granularity, symmetric }
}

/// Every uniform setting of one training classifies; a random choice of forms too.
#[test]
fn every_setting_works_without_training() {
    let (samples, targets) = stripes(160);
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    let supernet = trained(&data, &options(8));
    let net = supernet.net(&Device::cpu()).unwrap();
    let judge = |choice: &[usize]| {
        let (theta, moments) = supernet.recalibrated(&net, Some(choice), &data);
        evaluate(&net, &theta, &moments, &data).unwrap()
    };
    let all = supernet.options.forms(false);
    assert_eq!(all.len(), 2 + 3 * 4, "eight bits are symmetric alone: {all:?}");
    for form in all {
        let accuracy = judge(&supernet.uniform(form, None));
        assert!(accuracy > 0.9, "{form}: {accuracy}");
    }
    let mut random = Random::new(3, 3);
    for _ in 0..5 {
        let choice = supernet.random(&mut random);
        assert!(judge(&choice) > 0.9, "{choice:?}");
    }
}

/// Training ends at the coded bits that are wanted, whatever the widths would allow, and the network still works.
#[test]
fn coded_bits_are_met() {
    let (samples, targets) = stripes(160);
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    let mut own = options(60);
    (own.bits, own.edge_bits, own.granularity) = (vec![4], 4, vec![Granularity::Channel]);
    (own.symmetry, own.train.rate) = (vec![Symmetry::Symmetric], Some(1e-2));
    let free = Supernet::new(&dense_network(), &data, &own).unwrap();
    own.coded_bits = Some(1.5);
    let supernet = Supernet::new(&dense_network(), &data, &own).unwrap();
    let mut random = Random::new(1, 1);
    let choice = supernet.narrowest(&mut random);
    let bits = |net: &Supernet| net.add_rate(net.theta(), &choice, 0.0, &mut vec![0.0; net.theta().len()]);
    assert!(bits(&free) > 2.5, "{}", bits(&free));
    let stop = AtomicBool::new(false);
    let mut hooks = Hooks { step: &mut |_| (), report: &|_| (), stop: &stop, checkpoint: None };
    let done = train(supernet, &data, None, &Device::cpu(), &mut hooks, None).unwrap();
    assert!((1.4..1.6).contains(&bits(&done.supernet)), "{}", bits(&done.supernet));
    assert!((done.coded_bits.unwrap() - bits(&done.supernet)).abs() < 0.05);
    let net = done.supernet.net(&Device::cpu()).unwrap();
    let (theta, moments) = done.supernet.recalibrated(&net, Some(&choice), &data);
    assert!(evaluate(&net, &theta, &moments, &data).unwrap() > 0.9);
}

/// Layers may have widths of their own, the first and the last too.
#[test]
fn layers_have_the_widths_that_are_named() {
    let (samples, targets) = stripes(32);
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    let plain = Supernet::new(&network(1), &data, &options(1)).unwrap();
    let names: Vec<String> = plain.layers.iter().map(|l| l.name.clone()).collect();
    let mut own = options(1);
    own.layers = [(names[0].clone(), vec![4]), (names[1].clone(), vec![3, 5])].into();
    let supernet = Supernet::new(&network(1), &data, &own).unwrap();
    let widths = |l: usize| {
        let mut bits: Vec<u8> = supernet.layers[l].forms.iter().map(|f| f.bits).collect();
        bits.dedup();
        bits
    };
    assert_eq!((widths(0), widths(1)), (vec![4], vec![5, 3]));
    assert!((2..names.len()).all(|l| supernet.layers[l].forms == plain.layers[l].forms));
    own.layers.insert("conv9".into(), vec![4]);
    let error = Supernet::new(&network(1), &data, &own).unwrap_err().to_string();
    assert!(error.contains("conv9") && error.contains(&names[1]), "{error}");
    own.layers = [(names[0].clone(), vec![9])].into();
    assert!(Supernet::new(&network(1), &data, &own).unwrap_err().to_string().contains("layers"));
}

/// What training simulates is what is built: the same function up to float rounding, weights that are integers times a scale, and a file whose
/// outputs differ by eight-bit activations alone.
#[test]
fn what_is_simulated_is_built() {
    let (samples, targets) = stripes(96);
    // The network's own input is x / 2 - 0.25.
    let affine = (vec![0.5], vec![-0.25]);
    let data = Data { samples: &samples, targets: Some(&targets), affine: Some(&affine) };
    let mut supernet = trained(&data, &options(2));
    // A batch norm may turn a filter's sign.
    for node in &mut supernet.graph.nodes {
        if let Op::BatchNorm { gamma, .. } = &mut node.op {
            gamma[3] = -gamma[3];
        }
    }
    let theta: Vec<f32> = supernet.graph.theta().into_iter().chain(supernet.extra().to_vec()).collect();
    let moments = crate::train::Moments::of(&supernet.graph);
    supernet.set(&theta, &moments);
    let net = supernet.net(&Device::cpu()).unwrap();
    let recipe = Recipe {
        preprocess: crate::recipe::Preprocess { scale: 0.5, mean: vec![0.25], ..Default::default() },
        ..Recipe::default()
    };
    for wanted in
        [form(8, Granularity::Channel, true), form(3, Granularity::Tensor, true), form(2, Granularity::Channel, false)]
    {
        let choice = supernet.uniform(wanted, None);
        let (quantized, moments) = supernet.recalibrated(&net, Some(&choice), &data);
        let own =
            crate::search::subnet(&supernet, &choice, &data, &Device::cpu(), &recipe, pith::Isa::Generic).unwrap();
        assert_eq!(own.quantize.layers.len(), 4, "the layers are integers, whatever preprocessing stands before them");
        assert!(own.graph.nodes.iter().all(|n| !matches!(n.op, Op::BatchNorm { .. })));
        for (i, sample) in samples.iter().take(10).enumerate() {
            let simulated = net.predict(&quantized, &moments, &data.batches(&net, &[i], 1).next().unwrap());
            let built = eval::run(&own.graph, sample).unwrap();
            for (a, b) in simulated[0].iter().zip(&built[0]) {
                assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{wanted}: simulated {a}, built {b}");
            }
        }
        let recipe = Recipe { quantize: own.quantize, ..recipe.clone() };
        let quiet = |_: &'static str, _: usize| ();
        let prepared = prepare_given(own.graph.clone(), &samples, &[false], &recipe, &own.rounding, &quiet).unwrap();
        let options = BuildOptions::default();
        let built = finish_given(prepared, &samples, &[false], &recipe, options, &own.rounding, &quiet).unwrap();
        let file = ModelFile::new(&built.packed.bytes);
        let model = pith::Model::parse(file.as_bytes()).unwrap();
        let mut runner = Runner::new(&model);
        let alike = samples.iter().filter(|sample| {
            let (int, float) = (runner.run(sample), eval::run(&own.graph, sample).unwrap());
            (int[0][[0, 0]] > int[0][[0, 1]]) == (float[0][[0, 0]] > float[0][[0, 1]])
        });
        assert!(built.sqnr_db > 25.0 && alike.count() >= 94, "{wanted}: {} dB", built.sqnr_db);
    }
}

/// Activations of few bits: every width classifies, training simulates them as files compute them, and their operators stay within so many integers.
#[test]
fn activations_are_simulated_too() {
    let (samples, targets) = stripes(160);
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    let options = ElasticOptions { bits: vec![8, 4], activation_bits: vec![8, 4, 2], ..options(6) };
    let supernet = trained(&data, &options);
    let net = supernet.net(&Device::cpu()).unwrap();
    let recipe = Recipe::default();
    let quiet = |_: &'static str, _: usize| ();
    let noise = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum() };
    for bits in [8, 4, 2] {
        let wanted = QuantOptions { activation_bits: Some(bits), ..QuantOptions::default() };
        let choice = supernet.choose(&wanted).unwrap();
        assert_eq!(choice, supernet.uniform(form(8, Granularity::Channel, true), Some(bits)));
        assert_eq!(
            choice.len(),
            4 + 2,
            "four layers; the first reads the input, and the last a mean, which no clamp limits"
        );
        let (theta, moments) = supernet.recalibrated(&net, Some(&choice), &data);
        let accuracy = evaluate(&net, &theta, &moments, &data).unwrap();
        assert!(accuracy > 0.9, "{bits} bits: {accuracy}");
        let own =
            crate::search::subnet(&supernet, &choice, &data, &Device::cpu(), &recipe, pith::Isa::Generic).unwrap();
        let recipe = Recipe { quantize: own.quantize, ..recipe.clone() };
        let prepared = prepare_given(own.graph.clone(), &samples, &[false], &recipe, &own.rounding, &quiet).unwrap();
        let q = quantize(&prepared.graph, &prepared.stats, &recipe.quantize, prepared.choice, &[false], &own.rounding);
        let q = q.unwrap();
        let node = |name: &str| q.graph.nodes.iter().find(|n| n.name == name).unwrap();
        for name in ["first", "depthwise"] {
            let (lo, hi) = quantized_clamp(node(name).op.clamp().unwrap(), q.activations[node(name).output.0]);
            assert!(i32::from(hi) - i32::from(lo) < 1 << bits, "{name}, {bits} bits: {lo}..{hi}");
        }
        let options = BuildOptions::default();
        let built = finish_given(prepared, &samples, &[false], &recipe, options, &own.rounding, &quiet).unwrap();
        let file = ModelFile::new(&built.packed.bytes);
        let model = pith::Model::parse(file.as_bytes()).unwrap();
        let mut runner = Runner::new(&model);
        let (mut signal, mut simulated, mut floats) = (0.0, 0.0, 0.0);
        for (i, sample) in samples.iter().enumerate() {
            let int = runner.run(sample).swap_remove(0).into_raw_vec_and_offset().0;
            let as_trained = net.predict(&theta, &moments, &data.batches(&net, &[i], 1).next().unwrap());
            let float = eval::run(&own.graph, sample).unwrap().swap_remove(0).into_raw_vec_and_offset().0;
            signal += noise(&int, &[0.0, 0.0]);
            simulated += noise(&int, &as_trained[0]);
            floats += noise(&int, &float);
        }
        let db = |noise: f32| 10.0 * (signal / noise).log10();
        assert!(db(simulated) > 25.0, "{bits} bits: simulated to {} dB", db(simulated));
        assert!(bits > 2 || db(floats) < db(simulated) - 5.0, "two bits are far from floats: {} dB", db(floats));
    }
    let error = |wanted: QuantOptions| supernet.choose(&wanted).unwrap_err().to_string();
    let message = error(QuantOptions { activation_bits: Some(3), ..QuantOptions::default() });
    assert!(message.contains("no activations of 3 bits; its activations have 8, 4, 2"), "{message}");
    let own = LayerOptions { activation_bits: Some(2), ..LayerOptions::default() };
    let message = error(QuantOptions { layers: [("last".to_string(), own)].into(), ..QuantOptions::default() });
    assert!(message.contains("layer 'last' reads an activation that keeps eight bits"), "{message}");
    // One layer's own: what it reads, whoever else does.
    let wanted = QuantOptions { layers: [("middle".to_string(), own)].into(), ..QuantOptions::default() };
    let choice = supernet.choose(&wanted).unwrap();
    assert_ne!(choice[5], supernet.uniform(form(8, Granularity::Channel, true), None)[5]);
    assert_eq!(choice[..5], supernet.uniform(form(8, Granularity::Channel, true), None)[..5]);
}

/// Without training too: what layers read stays within so many integers, and the network still works.
#[test]
fn activations_of_few_bits_without_training() {
    let (samples, targets) = stripes(160);
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    let graph = simplify(trained(&data, &options(4)).graph);
    let mut before = f32::INFINITY;
    for bits in [8, 6, 4] {
        let quantize = QuantOptions { activation_bits: Some(bits), ..QuantOptions::default() };
        let recipe = Recipe { quantize, ..Recipe::default() };
        let built =
            crate::build::build(graph.clone(), &samples, &[false], &recipe, BuildOptions::default(), &|_, _| ());
        let db = built.unwrap().sqnr_db as f32;
        assert!(db > 10.0 && db < before, "{bits} bits: {db} dB after {before}");
        before = db;
    }
    let own = LayerOptions { activation_bits: Some(4), ..LayerOptions::default() };
    let check = |layer: &str| {
        QuantOptions { layers: [(layer.to_string(), own)].into(), ..QuantOptions::default() }.check(&graph)
    };
    assert!(check("middle").is_ok());
    for layer in ["first", "last"] {
        assert!(check(layer).unwrap_err().to_string().contains("reads an activation that keeps eight bits"), "{layer}");
    }
}

/// What was pruned before stays pruned, in every sub-network.
#[test]
fn pruned_weights_stay_zero() {
    let (samples, targets) = stripes(64);
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    let mut graph = network(1);
    for node in &mut graph.nodes {
        if let Op::Conv2d { weight, .. } = &mut node.op {
            weight.iter_mut().step_by(3).for_each(|w| *w = 0.0);
        }
    }
    let supernet = Supernet::new(&graph, &data, &options(2)).unwrap();
    let pruned = supernet.pruned();
    assert_eq!(pruned.len(), 24 + 24 + 192);
    let before = supernet.graph.theta();
    let stop = AtomicBool::new(false);
    let mut hooks = Hooks { step: &mut |_| (), report: &|_| (), stop: &stop, checkpoint: None };
    let supernet = train(supernet, &data, None, &Device::cpu(), &mut hooks, None).unwrap().supernet;
    let after = supernet.graph.theta();
    assert_eq!(supernet.pruned(), pruned, "zeros, and no others");
    assert!(before.iter().zip(&after).filter(|(a, b)| a != b).count() > before.len() / 3, "the rest was trained");
    let choice = supernet.uniform(form(3, Granularity::Channel, false), None);
    for (name, (_, rounded)) in &supernet.lower(&choice, &data, &Device::cpu()).unwrap().layers {
        if name != "last" {
            assert!(rounded.values.iter().step_by(3).all(|&n| n == 0), "{name}");
        }
    }
}

/// A file gives the same sub-networks; options choose forms by name.
#[test]
fn files_and_choices() {
    let (samples, targets) = stripes(64);
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    let supernet = trained(&data, &options(1));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.supernet");
    supernet.write(&path).unwrap();
    let again = Supernet::read(&path).unwrap();
    assert_eq!(again.extra(), supernet.extra());
    let choice = supernet.uniform(form(3, Granularity::Channel, true), None);
    let lower = |supernet: &Supernet| supernet.lower(&choice, &data, &Device::cpu()).unwrap();
    let (one, two) = (lower(&supernet), lower(&again));
    for (name, (bits, rounded)) in &one.layers {
        assert_eq!((bits, &rounded.values), (&two.layers[name].0, &two.layers[name].1.values), "{name}");
    }
    let layers = one.layers.into_iter().map(|(name, (_, r))| (name, r)).collect();
    assert!(Rounding::given(layers, one.activations).is_given());
    let mut wanted = QuantOptions { weight_bits: 4, ..QuantOptions::default() };
    let asymmetric = LayerOptions { weight_bits: Some(2), symmetric: Some(false), ..LayerOptions::default() };
    wanted.layers.insert("middle".into(), asymmetric);
    let forms: Vec<Form> =
        again.choose(&wanted).unwrap().into_iter().zip(&again.layers).map(|(i, l)| l.forms[i]).collect();
    let bits: Vec<u8> = forms.iter().map(|f| f.bits).collect();
    assert_eq!(bits, [8, 4, 2, 8], "edges keep eight bits");
    assert!(!forms[2].symmetric);
    wanted.layers.insert("first".into(), asymmetric);
    let error = again.choose(&wanted).unwrap_err().to_string();
    assert!(error.contains("'first'") && error.contains("2 bits per channel asymmetric"), "{error}");
    wanted.layers.clear();
    wanted.weight_bits = 5;
    let error = again.choose(&wanted).unwrap_err().to_string();
    assert!(error.contains("5 bits per channel") && error.contains("4 bits"), "{error}");
}

/// An interrupted training goes on to the same supernet.
#[test]
fn training_resumes() {
    let (samples, targets) = stripes(64);
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.npz");
    let run = |stop_at: usize, resume: Option<&Path>| {
        let own = ElasticOptions { coded_bits: Some(2.0), ..options(3) };
        let supernet = Supernet::new(&network(2), &data, &own).unwrap();
        let stop = AtomicBool::new(false);
        let report = |s: &crate::train::Status| stop.store(s.step == stop_at, std::sync::atomic::Ordering::Relaxed);
        let checkpoint = Some(path.clone());
        let mut hooks = Hooks { step: &mut |_| (), report: &report, stop: &stop, checkpoint };
        train(supernet, &data, None, &Device::cpu(), &mut hooks, resume)
    };
    let whole = run(usize::MAX, None).unwrap().supernet;
    std::fs::remove_file(&path).unwrap();
    let error = run(5, None).unwrap_err();
    assert!(matches!(error, ElasticError::Train(TrainError::Interrupted { .. })), "{error}");
    let resumed = run(usize::MAX, Some(&path)).unwrap().supernet;
    assert_eq!(whole.extra(), resumed.extra());
    assert_eq!(whole.graph.theta(), resumed.graph.theta());
    // Other options are another run.
    let other = ElasticOptions { guidance: 0.1, ..options(3) };
    let supernet = Supernet::new(&network(2), &data, &other).unwrap();
    let stop = AtomicBool::new(false);
    let mut hooks = Hooks { step: &mut |_| (), report: &|_| (), stop: &stop, checkpoint: None };
    let error = train(supernet, &data, None, &Device::cpu(), &mut hooks, Some(&path)).unwrap_err();
    assert!(error.to_string().contains("other options"), "{error}");
}

#[test]
fn impossible_options() {
    let (samples, targets) = stripes(16);
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    for (options, what) in [
        (ElasticOptions { bits: vec![], ..options(1) }, "elastic.bits"),
        (ElasticOptions { bits: vec![9], ..options(1) }, "elastic.bits"),
        (ElasticOptions { guidance: 2.0, ..options(1) }, "elastic.guidance"),
        (ElasticOptions { edge_bits: 1, ..options(1) }, "elastic.edge_bits"),
        (ElasticOptions { coded_bits: Some(0.0), ..options(1) }, "elastic.coded_bits"),
    ] {
        let error = Supernet::new(&network(1), &data, &options).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}
