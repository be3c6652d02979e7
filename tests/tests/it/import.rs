//! ONNX files → IR: the shared models against their golden outputs and against tract.

use ndarray::{ArrayD, IxDyn};
use pith_tests::{golden, relative_error, shared};
use quantize::graph::{Graph, Op, eval, simplify};
use quantize::onnx::{Oracle, import};

const MODELS: [(&str, usize); 10] = [
    ("ad01", 1),
    ("fmnist_cnn", 1),
    ("fmnist_cnn_bn", 1),
    ("ic_resnet8", 1),
    ("ic_resnet8_nchw", 1),
    ("ic_resnet8_qdq", 1),
    ("kws_ref", 1),
    ("mnist_zoo", 1),
    ("resnet20_cifar10", 1),
    ("yunet_s_320", 12),
];

/// The graph's outputs in ONNX axes for inputs in ONNX axes.
fn run(graph: &Graph, inputs: &[ArrayD<f32>]) -> Vec<ArrayD<f32>> {
    let fed: Vec<ArrayD<f32>> =
        graph.inputs.iter().zip(inputs).map(|(p, x)| x.clone().permuted_axes(IxDyn(&p.onnx_axes))).collect();
    let outputs = eval::run(graph, &fed).expect("shapes fit");
    let back = |axes: &[usize]| {
        let mut inverse = vec![0; axes.len()];
        axes.iter().enumerate().for_each(|(i, &a)| inverse[a] = i);
        inverse
    };
    graph.outputs.iter().zip(outputs).map(|(p, y)| y.permuted_axes(IxDyn(&back(&p.onnx_axes)))).collect()
}

#[test]
fn shared_models_mean_what_their_golden_outputs_say() {
    for (name, outputs) in MODELS {
        let Some(path) = shared(&format!("models/{name}.onnx")) else { return };
        let Some(npz) = shared(&format!("golden/{name}.npz")) else { return };
        let raw = import(&path).unwrap();
        let simple = simplify(raw.clone());
        let ops: Vec<&str> = simple.nodes.iter().map(|n| n.op.name()).collect();
        println!("{name}: {} nodes, then {}: {}", raw.nodes.len(), ops.len(), ops.join(" "));
        let inputs = golden(&npz, "in", 1, 0);
        let expected = golden(&npz, "out", outputs, 0);
        // The quantized twin rounds activations, which the import leaves out.
        let bound = if name == "ic_resnet8_qdq" { 0.2 } else { 2e-4 };
        for graph in [&raw, &simple] {
            for (got, expected) in run(graph, &inputs).iter().zip(&expected) {
                let error = relative_error(got, expected);
                assert!(error < bound, "{name}: {error}");
            }
        }
        if name != "ic_resnet8_qdq" {
            let tract = Oracle::load(&path).unwrap().run(&inputs).unwrap();
            for (got, expected) in tract.iter().zip(&expected) {
                // tract approximates exponentials; where all values are below 0.001 that shows.
                assert!(relative_error(got, expected) < 2e-3, "tract on {name}");
            }
        }
        let transposes = simple.nodes.iter().filter(|n| matches!(n.op, Op::Transpose { .. })).count();
        assert_eq!(transposes, 0, "{name}");
    }
}

#[test]
fn both_exports_of_one_network_become_the_same_graph() {
    let (Some(nhwc), Some(nchw)) = (shared("models/ic_resnet8.onnx"), shared("models/ic_resnet8_nchw.onnx")) else {
        return;
    };
    let ops = |path| simplify(import(path).unwrap()).nodes.iter().map(|n| n.op.name()).collect::<Vec<_>>();
    assert_eq!(ops(&nhwc), ops(&nchw));
}

#[test]
fn damaged_files_are_errors_not_panics() {
    let good = std::fs::read(pith_tests::here().join("models/digits/digits.onnx")).unwrap();
    let mut state = 5u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let mut imported = 0;
    for _ in 0..4000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random(3) {
            // Structure lies between the weights; short runs of small changes reach it best.
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = random(256) as u8,
                2 => bytes.truncate(at.max(1)),
                _ => {
                    let from = random(bytes.len());
                    let part: Vec<u8> = bytes[from..].iter().copied().take(1 + random(8)).collect();
                    bytes[at..].iter_mut().zip(part).for_each(|(to, b)| *to = b);
                }
            }
        }
        if let Ok(graph) = quantize::onnx::import_bytes("mutant.onnx", &bytes) {
            imported += 1;
            let graph = simplify(graph);
            let inputs: Vec<ArrayD<f32>> = graph.inputs.iter().map(|p| ArrayD::zeros(graph.shape(p.tensor))).collect();
            if inputs.iter().map(|x| x.len()).sum::<usize>() < 1 << 16 {
                eval::run(&graph, &inputs).unwrap();
            }
        }
    }
    assert!(imported > 100, "{imported} mutants were still networks");
}
