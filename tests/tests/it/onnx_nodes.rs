//! The ONNX project's own operator tests, imported and compared in float through the IR.
//!
//! They lie in the `onnx` Python package's wheel, which `cargo xtask setup` puts into `target/onnx-node-tests` (or where
//! `PITH_ONNX_NODE_TESTS` says). Inputs after the first become constants for operators whose weights are constants to us. Tests of
//! other element types, of forms that the importer says it does not support, and of empty tensors do not apply; the counts by
//! reason are printed.

use ndarray::{ArrayD, Axis, IxDyn};
use pith_tests::relative_error;
use pith_tools::setup::node_tests;
use prost::Message;
use quantize::graph::{Graph, eval, simplify};
use quantize::onnx::{BatchAxis, ImportError, import_model};
use std::collections::BTreeMap;
use std::io::Read;
use tract_onnx::pb::{self, ModelProto, TensorProto, tensor_shape_proto::dimension, type_proto};

/// Operators of the importer, and whether inputs after the first are activations too.
const OPERATORS: [(&str, bool); 44] = [
    ("Conv", false),
    ("ConvTranspose", false),
    ("Gemm", false),
    ("MatMul", false),
    ("BatchNormalization", false),
    ("Add", true),
    ("Sub", true),
    ("Mul", true),
    ("Div", true),
    ("Relu", false),
    ("Clip", false),
    ("LeakyRelu", false),
    ("PRelu", false),
    ("Sigmoid", false),
    ("HardSigmoid", false),
    ("HardSwish", false),
    ("Tanh", false),
    ("Gelu", false),
    ("Erf", false),
    ("Exp", false),
    ("Log", false),
    ("Sqrt", false),
    ("Abs", false),
    ("Neg", false),
    ("Softplus", false),
    ("Elu", false),
    ("Reciprocal", false),
    ("MaxPool", false),
    ("AveragePool", false),
    ("GlobalAveragePool", false),
    ("GlobalMaxPool", false),
    ("ReduceMean", false),
    ("Pad", false),
    ("Concat", true),
    ("Split", false),
    ("Slice", false),
    ("Reshape", false),
    ("Flatten", false),
    ("Squeeze", false),
    ("Unsqueeze", false),
    ("Transpose", false),
    ("Resize", false),
    ("Softmax", false),
    ("Identity", false),
];

/// Operators on maps, which run one sample at a time.
const PER_SAMPLE: [&str; 8] = [
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Resize",
    "BatchNormalization",
];

/// Why a test does not apply.
type Reason = &'static str;

struct Test {
    name: String,
    model: ModelProto,
    inputs: Vec<TensorProto>,
    outputs: Vec<TensorProto>,
}

fn tests() -> Option<Vec<Test>> {
    let folder = std::env::var_os("PITH_ONNX_NODE_TESTS").map_or_else(node_tests, Into::into);
    let wheel = std::fs::read_dir(&folder)
        .ok()?
        .filter_map(Result::ok)
        .find(|e| e.path().extension().is_some_and(|x| x == "whl"))?;
    let mut archive = zip::ZipArchive::new(std::fs::File::open(wheel.path()).ok()?).ok()?;
    let mut files: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).ok()?;
        let Some(rest) = entry.name().strip_prefix("onnx/backend/test/data/node/").map(str::to_string) else {
            continue;
        };
        let Some((test, file)) = rest.split_once('/') else { continue };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).ok()?;
        files.entry(test.into()).or_default().insert(file.into(), bytes);
    }
    let tensors = |files: &BTreeMap<String, Vec<u8>>, kind: &str| -> Vec<TensorProto> {
        let numbered = (0..).map_while(|k| files.get(&format!("test_data_set_0/{kind}_{k}.pb")));
        numbered.filter_map(|b| TensorProto::decode(b.as_slice()).ok()).collect()
    };
    let test = |(name, files): (String, BTreeMap<String, Vec<u8>>)| {
        let model = ModelProto::decode(files.get("model.onnx")?.as_slice()).ok()?;
        Some(Test { name, model, inputs: tensors(&files, "input"), outputs: tensors(&files, "output") })
    };
    Some(files.into_iter().filter_map(test).collect())
}

/// None for messages that are no tensors (sequences and optionals decode as odd ones).
fn floats(t: &TensorProto) -> Option<ArrayD<f32>> {
    let shape: Vec<usize> = t.dims.iter().map(|&d| d as usize).collect();
    let values: Vec<f32> = match t.raw_data.is_empty() {
        true => t.float_data.clone(),
        false => t.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    };
    ArrayD::from_shape_vec(IxDyn(&shape), values).ok()
}

fn outputs(graph: &Graph, inputs: &[ArrayD<f32>]) -> ArrayD<f32> {
    let fed: Vec<_> =
        graph.inputs.iter().zip(inputs).map(|(p, x)| x.clone().permuted_axes(IxDyn(&p.onnx_axes))).collect();
    let got = eval::run(graph, &fed).expect("shapes fit").remove(0);
    let axes = &graph.outputs[0].onnx_axes;
    let mut inverse = vec![0; axes.len()];
    axes.iter().enumerate().for_each(|(i, &a)| inverse[a] = i);
    got.permuted_axes(IxDyn(&inverse))
}

/// The largest error of the first output, raw and simplified; or why the test does not apply.
fn run(test: &Test, activations: bool) -> Result<f32, Result<Reason, String>> {
    let mut model = test.model.clone();
    let graph = model.graph.as_mut().expect("a graph");
    let op = graph.node[0].op_type.clone();
    let types: Vec<i32> = test.inputs.iter().map(|t| t.data_type).collect();
    let all_float = if activations { types.iter().all(|&t| t == 1) } else { types.first() == Some(&1) };
    if !all_float || test.outputs.first().map(|t| t.data_type) != Some(1) {
        return Err(Ok("element type"));
    }
    if test.inputs.iter().chain(&test.outputs).any(|t| t.dims.contains(&0)) && test.inputs[0].dims.contains(&0) {
        return Err(Ok("empty tensor"));
    }
    let runtime_inputs = if activations { test.inputs.len() } else { 1 };
    for (k, t) in test.inputs.iter().enumerate().skip(runtime_inputs) {
        graph.initializer.push(TensorProto { name: graph.input[k].name.clone(), ..t.clone() });
    }
    let data: Option<Vec<ArrayD<f32>>> = test.inputs[..runtime_inputs].iter().map(floats).collect();
    let (Some(data), Some(expected)) = (data, floats(&test.outputs[0])) else { return Err(Ok("no tensor")) };
    let split = PER_SAMPLE.contains(&op.as_str()) && data[0].ndim() > 2 && data[0].len_of(Axis(0)) > 1;
    if split {
        let Some(type_proto::Value::TensorType(t)) = graph.input[0].r#type.as_mut().and_then(|t| t.value.as_mut())
        else {
            return Err(Ok("input type"));
        };
        t.shape.as_mut().expect("a shape").dim[0].value = Some(dimension::Value::DimValue(1));
    }
    let imported = match import_model(&test.name, &model, BatchAxis::Keep) {
        Ok(graph) => graph,
        Err(ImportError::Unsupported { operators, .. }) => {
            println!("  {}: unsupported {}", test.name, operators.into_keys().collect::<Vec<_>>().join(", "));
            return Err(Ok("form the importer says it does not support"));
        }
        Err(error) => return Err(Err(error.to_string())),
    };
    let mut worst = 0f32;
    for graph in [imported.clone(), simplify(imported)] {
        let got = match split {
            false => outputs(&graph, &data),
            true => {
                let one = |x: ndarray::ArrayViewD<'_, f32>| outputs(&graph, &[x.insert_axis(Axis(0)).to_owned()]);
                let parts: Vec<_> = data[0].outer_iter().map(one).collect();
                ndarray::concatenate(Axis(0), &parts.iter().map(|p| p.view()).collect::<Vec<_>>())
                    .expect("equal shapes")
            }
        };
        if got.shape() != expected.shape() {
            return Err(Err(format!("shape {:?} instead of {:?}", got.shape(), expected.shape())));
        }
        // Where the reference is not finite, ours must be the same.
        let same = |a: f32, b: f32| {
            if b.is_finite() {
                a
            } else if a == b || (a.is_nan() && b.is_nan()) {
                0.0
            } else {
                f32::MAX
            }
        };
        let finite = |v: &f32| if v.is_finite() { *v } else { 0.0 };
        let got = ArrayD::from_shape_fn(got.raw_dim(), |i| same(got[&i], expected[&i]));
        worst = worst.max(relative_error(&got, &expected.mapv(|v| finite(&v))));
    }
    Ok(worst)
}

#[test]
fn operators_mean_what_the_standard_says() {
    let Some(tests) = tests() else {
        return println!("skipped: no ONNX node tests; cargo xtask setup downloads them");
    };
    let (mut passed, mut applicable) = (0, 0);
    let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
    let mut failures = Vec::new();
    for test in &tests {
        let nodes: &[pb::NodeProto] = test.model.graph.as_ref().map_or(&[], |g| &g.node);
        let Some(&(_, activations)) = OPERATORS.iter().find(|(op, _)| nodes.len() == 1 && *op == nodes[0].op_type)
        else {
            continue;
        };
        match run(test, activations) {
            Ok(error) => {
                applicable += 1;
                if error < 1e-3 { passed += 1 } else { failures.push(format!("{}: error {error}", test.name)) }
            }
            Err(Ok(reason)) => *reasons.entry(reason).or_default() += 1,
            Err(Err(message)) => {
                applicable += 1;
                failures.push(format!("{}: {message}", test.name));
            }
        }
    }
    println!("ONNX node tests: passed {passed} / applicable {applicable}; not applicable: {reasons:?}");
    assert!(applicable > 100 && failures.is_empty(), "{}", failures.join("\n"));
}
