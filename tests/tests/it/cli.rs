//! The command as its users meet it: results, JSON keys, and one clear line for every kind of bad input.

use pith_tests::here;
use prost::Message;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Exit code, standard output, standard error.
pub(crate) fn quantize(args: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = quantize::cli::run(["quantize"].iter().chain(args), &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

pub(crate) fn digits(file: &str) -> String {
    here().join("models/digits").join(file).display().to_string()
}

pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.0.path().join(name), bytes).unwrap();
        self.path(name)
    }

    /// Builds the digits model and returns its path.
    fn model(&self) -> String {
        let path = self.path("digits.pith");
        let (code, _, err) = build(&digits("digits.onnx"), &digits("digits_train.npz"), &path, &[]);
        assert_eq!(code, 0, "{err}");
        path
    }
}

fn build(model: &str, data: &str, output: &str, more: &[&str]) -> (u8, String, String) {
    quantize(&[&["build", model, "--data", data, "--scale", "1/16", "-o", output], more].concat())
}

/// Exit code 2, one line that contains every one of `parts`, and no output.
pub(crate) fn refused(result: (u8, String, String), parts: &[&str], output: Option<&str>) {
    let (code, out, err) = result;
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    assert!(err.starts_with("error: ") && err.trim_end().lines().count() == 1, "{err}");
    parts.iter().for_each(|part| assert!(err.contains(part), "no '{part}' in: {err}"));
    if let Some(output) = output {
        let folder = Path::new(output).parent().unwrap();
        assert!(!Path::new(output).exists(), "{output} was written");
        let left: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().path()).collect();
        assert!(!left.iter().any(|p| p.extension().is_some_and(|e| e == "tmp")), "{left:?}");
    }
}

#[test]
fn build_eval_run_inspect() {
    let folder = Folder::new();
    let model = folder.path("digits.pith");
    let (code, text, err) = build(
        &digits("digits.onnx"),
        &digits("digits_train.npz"),
        &model,
        &["--test", &digits("digits_test.npz"), "--json"],
    );
    assert_eq!(code, 0, "{err}");
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    for key in ["file_bytes", "weight_bytes", "coded_bytes", "arena_bytes", "macs"] {
        assert!(report[key].as_u64().unwrap() > 0, "{key}");
    }
    assert_eq!(report["file_bytes"].as_u64().unwrap(), std::fs::metadata(&model).unwrap().len());
    let layer = &report["layers"][0];
    assert!(layer["name"].is_string() && layer["op"] == "conv" && layer["bits"] == 8 && layer["weight_bytes"] == 144);
    let accuracy = |side: &str| report["accuracy"][side].as_f64().unwrap();
    assert!(accuracy("float") > 0.97 && accuracy("int8") >= accuracy("float") - 0.005, "{report}");

    let (code, text, err) = quantize(&[
        "eval",
        &model,
        "--data",
        &digits("digits_test.npz"),
        "--against",
        &digits("digits.onnx"),
        "--layers",
        "--json",
    ]);
    assert_eq!(code, 0, "{err}");
    let eval: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((eval["metric"].as_str(), eval["n"].as_u64()), (Some("accuracy"), Some(450)));
    assert!((eval["value"].as_f64().unwrap() - accuracy("int8")).abs() < 1e-9);
    assert!(eval["outputs"][0]["name"] == "logits" && eval["outputs"][0]["sqnr_db"].as_f64().unwrap() > 25.0);
    assert!(eval["outputs"][0]["max_abs_error"].as_f64().unwrap() > 0.0);
    assert!(eval["layers"].as_array().unwrap().iter().all(|l| l["sqnr_db"].as_f64().unwrap() > 20.0), "{text}");

    let (real, raw) = (folder.path("y.npy"), folder.path("q.npy"));
    assert_eq!(quantize(&["run", &model, "--input", &digits("digits_test.npz"), "--output", &real]).0, 0);
    let threaded = folder.path("threaded.npy");
    let run = ["run", &model, "--input", &digits("digits_test.npz"), "--output", &threaded, "--threads", "3"];
    assert_eq!(quantize(&run).0, 0);
    assert_eq!(std::fs::read(&threaded).unwrap(), std::fs::read(&real).unwrap());
    assert_eq!(quantize(&[&run[..7], &["0"]].concat()).0, 2);
    let logits = quantize::npy::read(Path::new(&real)).unwrap().remove(0).1;
    assert_eq!((logits.values.shape(), logits.kind.as_str()), (&[450, 10][..], "f4"));
    let pixels = quantize::npy::read(Path::new(&digits("digits_test.npz"))).unwrap().remove(0).1.values;
    let bytes: Vec<u8> = pixels.iter().map(|&v| (v as i16 - 128) as i8 as u8).collect();
    let x = folder.write("x.npy", &quantize::npy::encode("|i1", &[450, 8, 8], &bytes));
    assert_eq!(quantize(&["run", &model, "--input", &x, "--output", &raw, "--raw"]).0, 0);
    let q = quantize::npy::read(Path::new(&raw)).unwrap().remove(0).1;
    let port = &report["outputs"][0];
    let (scale, zero) = (port["scale"].as_f64().unwrap() as f32, port["zero_point"].as_i64().unwrap() as f32);
    assert!(q.values.iter().zip(&logits.values).all(|(&q, &y)| ((q - zero) * scale - y).abs() < 1e-4));

    let picture = folder.path("plan.svg");
    let (code, text, _) = quantize(&["inspect", &model, "--plan-svg", &picture]);
    assert!(code == 0 && text.contains("depthwise") && text.contains("preprocess.scale=0.0625"), "{text}");
    assert!(std::fs::read_to_string(picture).unwrap().starts_with("<svg"));
}

#[test]
fn the_same_input_gives_the_same_file_and_fewer_bits_a_smaller_one() {
    let folder = Folder::new();
    let first = std::fs::read(folder.model()).unwrap();
    assert_eq!(first, std::fs::read(folder.model()).unwrap());
    for bits in ["4", "2"] {
        let path = folder.path("small.pith");
        let (code, _, err) =
            build(&digits("digits.onnx"), &digits("digits_train.npz"), &path, &["--weight-bits", bits]);
        assert_eq!(code, 0, "{err}");
        assert!(std::fs::metadata(path).unwrap().len() < first.len() as u64);
    }
}

#[test]
fn damaged_models_are_refused() {
    let folder = Folder::new();
    let good = std::fs::read(folder.model()).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 4;
    let mut newer = good.clone();
    newer[4] = 9;
    for (name, bytes, what) in [
        ("cut.pith", &good[..good.len() - 9], "cut off"),
        ("flipped.pith", &flipped, "checksum"),
        ("newer.pith", &newer, "version 9"),
        ("empty.pith", &good[..0], "cut off"),
    ] {
        let path = folder.write(name, bytes);
        refused(quantize(&["eval", &path, "--data", &digits("digits_test.npz")]), &[name, what], None);
        refused(quantize(&["inspect", &path]), &[name, what], None);
    }
}

#[test]
fn networks_that_cannot_be_imported_are_refused() {
    let folder = Folder::new();
    let output = folder.path("out.pith");
    let data = digits("digits_train.npz");
    let onnx = |change: &dyn Fn(&mut tract_onnx::pb::GraphProto)| {
        let mut model =
            tract_onnx::pb::ModelProto::decode(std::fs::read(digits("digits.onnx")).unwrap().as_slice()).unwrap();
        change(model.graph.as_mut().unwrap());
        model.encode_to_vec()
    };
    let text = folder.write("text.onnx", b"this is no protobuf at all");
    refused(build(&text, &data, &output, &[]), &["text.onnx", "not an ONNX model"], Some(&output));
    refused(build("absent.onnx", &data, &output, &[]), &["absent.onnx"], Some(&output));

    let unsupported = onnx(&|g| {
        g.node[0].op_type = "GridSample".into();
        g.node[4].op_type = "LSTM".into();
    });
    let path = folder.write("unsupported.onnx", &unsupported);
    refused(build(&path, &data, &output, &[]), &["GridSample", "LSTM", "/stem/stem.0/Conv"], Some(&output));

    let dynamic = onnx(&|g| {
        use tract_onnx::pb::{tensor_shape_proto::dimension::Value, type_proto};
        let Some(type_proto::Value::TensorType(t)) = g.input[0].r#type.as_mut().unwrap().value.as_mut() else {
            panic!()
        };
        t.shape.as_mut().unwrap().dim[2].value = Some(Value::DimParam("height".into()));
    });
    let path = folder.write("dynamic.onnx", &dynamic);
    refused(build(&path, &data, &output, &[]), &["image", "axis 2", "height", "fixed sizes"], Some(&output));
}

#[test]
fn sets_that_do_not_fit_are_refused() {
    let folder = Folder::new();
    let output = folder.path("out.pith");
    let model = digits("digits.onnx");
    let set = |name: &str, arrays: &[(&str, Vec<u8>)]| {
        let arrays: Vec<_> = arrays.iter().map(|(n, b)| (n.to_string(), b.clone())).collect();
        folder.write(name, &quantize::npy::encode_archive(&arrays).unwrap())
    };
    let x = |shape: &[usize]| quantize::npy::encode("|u1", shape, &vec![1; shape.iter().product()]);
    let mut floats = vec![0f32; 128];
    floats[70] = f32::NAN;
    let nan = quantize::npy::encode("<f4", &[2, 8, 8], bytemuck::cast_slice(&floats));
    let labels = quantize::npy::encode("|u1", &[2], &[3, 10]);
    for (name, arrays, parts) in [
        ("shape.npz", vec![("x", x(&[5, 8, 9]))], vec!["'x'", "[8, 9]", "[1, 1, 8, 8]"]),
        ("dtype.npz", vec![("x", quantize::npy::encode("<c8", &[1, 8, 8], &[0; 512]))], vec!["'x'", "c8"]),
        ("nan.npz", vec![("x", nan)], vec!["NaN", "sample 1"]),
        ("labels.npz", vec![("x", x(&[2, 8, 8])), ("y", labels.clone())], vec!["label 10", "sample 1", "0..10"]),
        ("count.npz", vec![("x", x(&[3, 8, 8])), ("y", labels)], vec!["'y'", "2 entries for 3 samples"]),
        ("nox.npz", vec![("images", x(&[3, 8, 8]))], vec!["no array 'x'", "images"]),
    ] {
        let path = set(name, &arrays);
        let parts: Vec<&str> = parts.into_iter().chain([name]).collect();
        refused(build(&model, &path, &output, &[]), &parts, Some(&output));
    }
    let text = folder.write("text.npz", b"not a zip");
    refused(build(&model, &text, &output, &[]), &["text.npz", "not an npz"], Some(&output));
    refused(build(&model, "absent.npz", &output, &[]), &["absent.npz"], Some(&output));
}

#[test]
fn recipes_and_options_that_make_no_sense_are_refused() {
    let folder = Folder::new();
    let output = folder.path("out.pith");
    let (model, data) = (digits("digits.onnx"), digits("digits_train.npz"));
    let recipe = folder.write("r.toml", b"[quantize]\nweight_bit = 4\n");
    refused(
        build(&model, &data, &output, &["--recipe", &recipe]),
        &["r.toml", "weight_bit", "weight_bits"],
        Some(&output),
    );
    let nowhere = folder.path("absent/out.pith");
    refused(build(&model, &data, &nowhere, &[]), &["absent", "does not exist"], Some(&nowhere));
    refused(build(&model, &data, &output, &["--std", "1,2,0"]), &["std", "3 values"], Some(&output));
    refused(build(&model, &data, &output, &["--std", "0"]), &["std", "not zero"], Some(&output));
    let (code, _, err) = build(&model, &data, &output, &["--weight-bits", "9"]);
    assert!(code == 2 && err.contains("9"), "{err}");
    let packed = folder.model();
    let several = folder.write("x.npy", &quantize::npy::encode("<f4", &[1, 8, 8], &[0; 256]));
    refused(
        quantize(&["run", &packed, "--input", &several, "--output", &folder.path("y.npy"), "--raw"]),
        &["int8", "f4"],
        None,
    );
}

#[test]
fn coded_weights_give_the_same_outputs() {
    let folder = Folder::new();
    let (x, raw, y) = (digits("digits_test.npz"), folder.path("raw.npy"), folder.path("y.npy"));
    let model = folder.model();
    assert_eq!(quantize(&["run", &model, "--input", &x, "--output", &raw]).0, 0);
    let coded = folder.path("coded.pith");
    for decode in ["ram", "flash", "tile"] {
        let more = ["--target", "cortex-m4", "--compress", "3", "--decode", decode, "--json"];
        let (code, text, err) = build(&digits("digits.onnx"), &digits("digits_train.npz"), &coded, &more);
        assert_eq!(code, 0, "{err}");
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let codes: Vec<_> = report["layers"].as_array().unwrap().iter().filter(|l| !l["code"].is_null()).collect();
        assert!(codes.iter().all(|l| l["code"]["decode"] == decode), "{text}");
        assert!(!codes.is_empty() && codes[0]["code"]["coded_bytes"] == codes[0]["weight_bytes"]);
        assert_eq!(report["decoded_bytes"].is_null(), decode == "tile", "{text}");
        assert_eq!(quantize(&["run", &coded, "--input", &x, "--output", &y]).0, 0);
        assert_eq!(std::fs::read(&y).unwrap(), std::fs::read(&raw).unwrap(), "{decode}");
    }
    let picture = folder.path("weights.svg");
    let (code, text, err) = quantize(&["inspect", &coded, "--weights-svg", &picture]);
    assert!(code == 0 && text.contains("bits/weight"), "{err}");
    assert!(std::fs::read_to_string(&picture).unwrap().ends_with("</svg>\n"));

    // A damaged code in a file whose checksum is right names its operator.
    let mut bytes = std::fs::read(&coded).unwrap();
    let file = quantize::pack::ModelFile::new(&bytes);
    let model = pith::Model::parse(file.as_bytes()).unwrap();
    let (id, constant) = model
        .constants()
        .iter()
        .enumerate()
        .find(|(_, c)| c.is_coded() && c.kind != pith::format::tensor::Constant::KIND_CHANNELS)
        .unwrap();
    let (head, _) = model.ops().find(|(_, op)| op.weights() == Some(id as u16)).unwrap();
    let last = (model.header().weights_offset + constant.offset + constant.bytes) as usize - 1;
    bytes[last] ^= 0x10;
    let crc = pith::format::crc32::crc32(&bytes[16..]).to_le_bytes();
    bytes[12..16].copy_from_slice(&crc);
    let damaged = folder.write("damaged.pith", &bytes);
    refused(quantize(&["inspect", &damaged]), &["damaged.pith", "weights of", model.op_name(&head), "damaged"], None);

    // A budget needs a clock, and is kept.
    let output = folder.path("budget.pith");
    let budget = |more: &[&str]| {
        let more = [&["--target", "cortex-m4", "--compress", "3", "--max-decode-us", "0", "--json"], more].concat();
        build(&digits("digits.onnx"), &digits("digits_train.npz"), &output, &more)
    };
    refused(budget(&[]), &["--clock-mhz", "cortex-m4"], Some(&output));
    let (code, text, err) = budget(&["--clock-mhz", "80"]);
    assert!(code == 0 && !text.contains("decode_instructions"), "{err}{text}");

    // The recipe says it too.
    let output = folder.path("recipe.pith");
    let with = |text: &str| {
        let recipe = folder.write("recipe.toml", text.as_bytes());
        let more = ["--target", "cortex-m4", "--recipe", &recipe, "--json"];
        build(&digits("digits.onnx"), &digits("digits_train.npz"), &output, &more)
    };
    refused(with("[compress]\nlevel = 12\n"), &["compress.level", "12"], Some(&output));
    refused(with("[compress]\nlevel = 1\ndecode = \"rom\"\n"), &["recipe.toml", "rom"], Some(&output));
    let (code, text, err) = with("[compress]\nlevel = 3\ndecode = \"flash\"\n");
    assert!(code == 0 && text.contains("\"decode\": \"flash\""), "{err}{text}");
}
