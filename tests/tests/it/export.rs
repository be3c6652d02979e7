//! IR → ONNX files: the shared models written and read again, and networks made here.

use ndarray::{ArrayD, IxDyn};
use pith_tests::{golden, relative_error, shared};
use quantize::graph::{Graph, eval, simplify, trainable};
use quantize::onnx::{Oracle, encode, import, import_bytes};
use tract_onnx::pb::ModelProto;

/// Name, outputs, transposes that the written file has.
const MODELS: [(&str, usize, usize); 10] = [
    ("ad01", 1, 0),
    ("fmnist_cnn", 1, 0),
    ("fmnist_cnn_bn", 1, 0),
    ("ic_resnet8", 1, 1),
    ("ic_resnet8_nchw", 1, 0),
    ("ic_resnet8_qdq", 1, 1),
    ("kws_ref", 1, 1),
    ("mnist_zoo", 1, 0),
    ("resnet20_cifar10", 1, 0),
    // Six of its outputs are lists of boxes, channels last.
    ("yunet_s_320", 12, 6),
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

fn transposes(bytes: &[u8]) -> usize {
    let model: ModelProto = prost::Message::decode(bytes).expect("a model");
    model.graph.map_or(0, |g| g.node.iter().filter(|n| n.op_type == "Transpose").count())
}

/// A file for other tools to check, where `PITH_EXPORTS` names a folder.
fn keep(name: &str, bytes: &[u8]) {
    if let Ok(folder) = std::env::var("PITH_EXPORTS") {
        std::fs::write(std::path::Path::new(&folder).join(format!("{name}.onnx")), bytes).expect("a writable folder");
    }
}

#[test]
fn shared_models_survive_export() {
    for (name, outputs, expected_transposes) in MODELS {
        let Some(path) = shared(&format!("models/{name}.onnx")) else { return };
        let Some(npz) = shared(&format!("golden/{name}.npz")) else { return };
        let inputs = golden(&npz, "in", 1, 0);
        let original = trainable(import(&path).unwrap());
        let bytes = encode(&original).unwrap();
        keep(name, &bytes);
        assert_eq!(transposes(&bytes), expected_transposes, "{name}");
        let back = trainable(import_bytes(name, &bytes).unwrap());
        // Branches that do not depend on each other may change places.
        let ops = |g: &Graph| {
            let mut names: Vec<_> = g.nodes.iter().map(|n| n.op.name()).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(ops(&back), ops(&original), "{name}");
        let expected = run(&original, &inputs);
        let golden = golden(&npz, "out", outputs, 0);
        for ((got, expected), golden) in run(&back, &inputs).iter().zip(&expected).zip(&golden) {
            let (error, drift) = (relative_error(got, expected), relative_error(got, golden));
            println!("{name}: {error:e} from what was written, {drift:e} from the original's golden output");
            assert!(error < 1e-6 && (drift < 2e-4 || name == "ic_resnet8_qdq"), "{name}: {error}, {drift}");
        }
    }
}

#[test]
fn networks_survive_export_and_folding() {
    for (name, _, network) in quantize::networks::NETWORKS {
        let graph = network([28, 28, 1], 10, 3).unwrap();
        let x = ArrayD::from_shape_fn(IxDyn(&[1, 1, 28, 28]), |i| ((i[2] * 28 + i[3]) as f32).sin());
        let expected = run(&graph, std::slice::from_ref(&x));
        for graph in [&graph, &simplify(graph.clone())] {
            let bytes = encode(graph).unwrap();
            keep(name, &bytes);
            assert_eq!(transposes(&bytes), 0, "{name}");
            let file = tempfile::NamedTempFile::with_suffix(".onnx").unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            let tract = Oracle::load(file.path()).unwrap().run(std::slice::from_ref(&x)).unwrap();
            let back = run(&import(file.path()).unwrap(), std::slice::from_ref(&x));
            assert!(relative_error(&back[0], &expected[0]) < 1e-5, "{name}");
            assert!(relative_error(&tract[0], &expected[0]) < 1e-4, "{name}");
        }
    }
}
