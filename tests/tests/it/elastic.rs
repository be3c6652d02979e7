//! Supernets as users meet them, on the shipped digits: trained once, built at every width, searched for a budget, and refused where something
//! does not fit.

use crate::cli::{Folder, digits, quantize, refused};
use serde_json::Value;

fn report(result: (u8, String, String)) -> Value {
    assert_eq!(result.0, 0, "{}", result.2);
    serde_json::from_str(&result.1).unwrap()
}

/// Arguments that say what digits are; the smaller set is enough to train on.
fn with_data(verb: &str, model: &str, more: &[&str]) -> (u8, String, String) {
    let data = digits("digits_test.npz");
    let scale: &[&str] = if more.contains(&"--scale") { &[] } else { &["--scale", "1/16"] };
    quantize(&[&[verb, model, "--data", &data], scale, more].concat())
}

fn bytes(path: &str) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn one_training_serves_every_width_and_budget() {
    let folder = Folder::new();
    let (supernet, model, recipe) = (folder.path("d.supernet"), folder.path("d.pith"), folder.path("d.toml"));
    let (onnx, test) = (digits("digits.onnx"), digits("digits_test.npz"));
    let train = ["--epochs", "5", "--test", &test, "--bits", "8,4,3,2", "-o", &supernet, "--json"];
    let run = report(with_data("elastic", &onnx, &train));
    let uniform = run["uniform"].as_array().unwrap();
    assert_eq!(uniform.len(), 2 + 3 * 4);
    for setting in uniform {
        let accuracy = setting["accuracy"].as_f64().unwrap();
        let least = if setting["bits"] == 2 { 0.9 } else { 0.95 };
        assert!(accuracy > least, "{setting}");
    }
    let build = |output: &str, more: &[&str]| {
        report(with_data("build", &supernet, &[&["--test", &test, "-o", output, "--json"], more].concat()))
    };
    // What was simulated is what is built, but for eight-bit activations.
    let mut sizes = Vec::new();
    for bits in [8, 4, 2] {
        let built = build(&model, &["--weight-bits", &bits.to_string()]);
        let simulated = uniform.iter().find(|u| u["bits"] == bits && u["granularity"] == "channel").unwrap();
        let difference = simulated["accuracy"].as_f64().unwrap() - built["accuracy"]["int8"].as_f64().unwrap();
        assert!(difference.abs() < 0.02, "{bits} bits: {simulated} simulated, built {}", built["accuracy"]);
        sizes.push(built["file_bytes"].as_u64().unwrap());
    }
    assert!(sizes[0] > sizes[1] && sizes[1] > sizes[2], "{sizes:?}");
    several_precisions(&folder, &supernet);
    // A budget of coded bytes is kept, and the recipe that was found builds the same file.
    let limit = (0.95 * sizes[1] as f64) as u64;
    let limit_text = limit.to_string();
    let budget = ["--max-flash", &limit_text, "--compress", "3", "--measured", "25", "--candidates", "20"];
    let built = build(&model, &budget);
    assert!(bytes(&model).len() as u64 <= limit);
    assert!(built["accuracy"]["int8"].as_f64().unwrap() > 0.93, "{built}");
    let base = folder.path("base.toml");
    std::fs::write(&base, "[compress]\nlevel = 3\n").unwrap();
    let picture = folder.path("front.svg");
    let find = ["--recipe", &base, "--svg", &picture, "-o", &recipe, "--json"];
    let found = report(with_data("search", &supernet, &[&find[..], &budget[..2], &budget[4..]].concat()));
    assert!(found["predictor"]["pearson"].as_f64().unwrap() > 0.5, "{}", found["predictor"]);
    assert!(found["best"]["flash"].as_u64().unwrap() <= limit);
    assert!(String::from_utf8(bytes(&picture)).unwrap().starts_with("<svg"));
    let same = folder.path("same.pith");
    build(&same, &["--config", &recipe]);
    assert_eq!(bytes(&model), bytes(&same));
    // What was measured serves other searches of this supernet on these data, and no others.
    let kept = folder.path("measured.json");
    let again = folder.path("again.toml");
    let resume = ["--recipe", &base, "-o", &again, "--checkpoint", &kept, "--resume"];
    let search = |more: &[&str]| with_data("search", &supernet, &[&resume[..], &budget[4..], more].concat());
    report(search(&["--max-flash", "16K", "--json"]));
    let measured = serde_json::from_slice::<Value>(&bytes(&kept)).unwrap()["measured"].as_array().unwrap().len();
    assert!(measured >= 25, "{measured} sub-networks");
    report(search(&["--max-flash", &limit_text, "--json"]));
    assert_eq!(bytes(&recipe), bytes(&again));
    let other = digits("digits_train.npz");
    let (code, _, err) =
        quantize(&[&["search", &supernet, "--data", &other, "--scale", "1/16"], &resume[..], &budget[..2]].concat());
    assert!(code == 2 && err.contains("measured.json") && err.contains("other data"), "{code}: {err}");
    let network = with_data("search", &onnx, &["--max-flash", "4K", "--checkpoint", &kept, "-o", &again]);
    refused(network, &["--checkpoint", "supernet"], None);
}

/// One file of three precisions: each is what it is alone, the coarser ones are the beginning of the file, and together they are smaller than apart.
fn several_precisions(folder: &Folder, supernet: &str) {
    let (all, test) = (folder.path("all.pith"), digits("digits_test.npz"));
    let built = report(with_data("build", supernet, &["--elastic", "8,2,4", "--test", &test, "-o", &all, "--json"]));
    let precisions = built["precisions"].as_array().unwrap();
    assert_eq!(precisions.iter().map(|p| p["bits"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 4, 8]);
    assert!(precisions[1..].iter().all(|p| p["refined_layers"].as_u64().unwrap() > 0), "{built}");
    let outputs = |model: &str, more: &[&str]| {
        let output = folder.path("out.npy");
        let (code, _, err) = quantize(&[&["run", model, "--input", &test, "--output", &output], more].concat());
        assert_eq!(code, 0, "{err}");
        bytes(&output)
    };
    let mut apart = 0;
    for (i, bits) in ["2", "4", "8"].into_iter().enumerate() {
        let alone = folder.path("alone.pith");
        let one = report(with_data(
            "build",
            supernet,
            &["--weight-bits", bits, "--compress", "6", "--test", &test, "-o", &alone, "--json"],
        ));
        apart += bytes(&alone).len();
        let expected = outputs(&alone, &[]);
        assert_eq!(outputs(&all, &["--precision", bits]), expected, "{bits} bits");
        let difference = precisions[i]["accuracy"].as_f64().unwrap() - one["accuracy"]["int8"].as_f64().unwrap();
        assert!(difference.abs() < 1e-4, "{bits} bits");
        // The beginning of the file is a file, whose finest precision this is.
        let part = folder.path("part.pith");
        std::fs::write(&part, &bytes(&all)[..precisions[i]["file_bytes"].as_u64().unwrap() as usize]).unwrap();
        assert_eq!(outputs(&part, &[]), expected, "{bits} bits");
    }
    assert!(bytes(&all).len() < apart);
    refused(quantize(&["inspect", &all, "--precision", "3"]), &["all.pith", "3 bits", "2, 4, 8"], None);
    let (code, text, _) = quantize(&["inspect", &all]);
    assert!(code == 0 && text.contains("8 bits") && text.contains("precision=8"), "{text}");
    // Cut in the middle of a precision.
    let cut = folder.path("cut.pith");
    std::fs::write(&cut, &bytes(&all)[..bytes(&all).len() - 100]).unwrap();
    refused(quantize(&["inspect", &cut]), &["cut.pith", "cut off"], None);
    let tiles = with_data("build", supernet, &["--elastic", "8,2", "--decode", "tile", "-o", &cut]);
    refused(tiles, &["--decode ram or flash"], None);
    let many = with_data("build", supernet, &["--elastic", "8,6,5,4,3", "-o", &cut]);
    refused(many, &["--elastic", "up to 4"], None);
    let timed = with_data("build", supernet, &["--elastic", "8,2", "--max-decode-us", "9", "-o", &cut]);
    refused(timed, &["--max-decode-us", "--compress"], None);
    let onnx = digits("digits.onnx");
    for verb in [&["inspect", &onnx][..], &["eval", &onnx, "--data", &test]] {
        refused(quantize(&[verb, &["--precision", "8"]].concat()), &["--precision", "ONNX"], None);
    }
    let budget = with_data("build", supernet, &["--elastic", "8,2", "--max-flash", "4K", "-o", &cut]);
    refused(budget, &["--elastic", "--max-flash"], None);
}

/// Activations of few bits: trained, judged and built alike, and refused where they were not trained.
#[test]
fn activations_too() {
    let folder = Folder::new();
    let (supernet, model) = (folder.path("d.supernet"), folder.path("d.pith"));
    let (onnx, test) = (digits("digits.onnx"), digits("digits_test.npz"));
    let space = ["--bits", "8,4", "--activation-bits", "8,4", "--granularity", "channel", "--symmetry", "symmetric"];
    let train = [&space[..], &["--epochs", "4", "--test", &test, "-o", &supernet, "--json"]].concat();
    let run = report(with_data("elastic", &onnx, &train));
    let uniform = run["uniform"].as_array().unwrap();
    let settings: Vec<_> = uniform.iter().map(|u| (u["bits"].as_u64(), u["activation_bits"].as_u64())).collect();
    assert_eq!(settings, [(8, 8), (4, 8), (4, 4)].map(|(a, b)| (Some(a), Some(b))));
    let bits = ["--weight-bits", "4", "--activation-bits", "4", "--test", &test, "-o", &model, "--json"];
    let built = report(with_data("build", &supernet, &bits));
    let (simulated, right) = (&uniform[2]["accuracy"], &built["accuracy"]["int8"]);
    assert!((simulated.as_f64().unwrap() - right.as_f64().unwrap()).abs() < 0.01, "{simulated}, built {right}");
    assert!(right.as_f64().unwrap() > 0.95, "{right}");
    refused(with_data("build", &supernet, &["--activation-bits", "2", "-o", &model]), &["2 bits", "8, 4"], None);
    // Before minutes of training, too.
    let late = ["--elastic-epochs", "1", "--activation-bits", "2", "-o", &model];
    refused(with_data("build", &onnx, &late), &["2 bits", "elastic.activation_bits"], None);
    let late = ["--elastic-epochs", "1", "--weight-bits", "7", "-o", &model];
    refused(with_data("build", &onnx, &late), &["7 bits per channel", "4 bits per channel symmetric"], None);
    // Without training, on calibrated ranges.
    let built = report(with_data("build", &onnx, &["--activation-bits", "4", "--test", &test, "-o", &model, "--json"]));
    assert!(built["accuracy"]["int8"].as_f64().unwrap() > 0.9, "{}", built["accuracy"]);
}

/// Asymmetric levels take no more bits than symmetric ones, on cores with kernels for few widths too, and give the same outputs everywhere.
#[test]
fn asymmetric_levels_have_zero_points() {
    let folder = Folder::new();
    let (supernet, model) = (folder.path("d.supernet"), folder.path("d.pith"));
    let space = ["--bits", "8,4,2", "--granularity", "channel", "--symmetry", "asymmetric"];
    let train = [&space[..], &["--epochs", "3", "-o", &supernet]].concat();
    assert_eq!(with_data("elastic", &digits("digits.onnx"), &train).0, 0);
    let (samples, test) = (folder.path("outputs.npy"), digits("digits_test.npz"));
    for bits in ["4", "2"] {
        let mut outputs = Vec::new();
        for target in ["portable", "cortex-m4", "cortex-m0", "cortex-m55"] {
            // Coded on one of them too.
            for level in if target == "cortex-m4" { &["0", "5"][..] } else { &["0"] } {
                let how = ["--weight-bits", bits, "--target", target, "--compress", level, "-o", &model, "--json"];
                let built = report(with_data("build", &supernet, &how));
                let layers = built["layers"].as_array().unwrap();
                let widths = layers.iter().filter(|l| l["op"] == "conv").map(|l| l["bits"].as_u64().unwrap());
                // The first layer keeps eight bits.
                let narrow = widths.skip(1).all(|own| own.to_string() == bits);
                assert!(narrow || *level != "0", "{target}, {bits} bits: {built}");
                let (code, _, error) = quantize(&["run", &model, "--input", &test, "--output", &samples]);
                assert_eq!(code, 0, "{error}");
                outputs.push(bytes(&samples));
            }
        }
        assert!(outputs.iter().all(|own| *own == outputs[0]), "{bits} bits");
    }
}

/// Pruned, trained elastically and coded in one command.
#[test]
fn all_in_one() {
    let folder = Folder::new();
    let model = folder.path("d.pith");
    let test = digits("digits_test.npz");
    let train = ["--macs", "0.7", "--epochs", "5", "--elastic-epochs", "4", "--batch", "16"];
    let args = [&train[..], &["--weight-bits", "3", "--compress", "4"]].concat();
    let args = [&args[..], &["--test", &test, "-o", &model, "--json"]].concat();
    let built = report(with_data("build", &digits("digits.onnx"), &args));
    assert!(built["accuracy"]["int8"].as_f64().unwrap() > 0.9, "{}", built["accuracy"]);
    let first = bytes(&model);
    report(with_data("build", &digits("digits.onnx"), &args));
    assert_eq!(first, bytes(&model), "equal seeds, equal files");
}

#[test]
fn bad_input_is_one_line() {
    let folder = Folder::new();
    let (supernet, model) = (folder.path("d.supernet"), folder.path("d.pith"));
    let onnx = digits("digits.onnx");
    let train = ["--epochs", "1", "--bits", "8,2", "--granularity", "channel", "-o", &supernet];
    assert_eq!(with_data("elastic", &onnx, &train).0, 0);
    let refuse = |verb: &str, model: &str, more: &[&str], code: u8, words: &[&str]| {
        let output = folder.path("out");
        let (status, _, err) = with_data(verb, model, &[more, &["-o", &output]].concat());
        assert_eq!(status, code, "{more:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        for word in words {
            assert!(err.contains(word), "{word} in {err}");
        }
        assert!(!std::path::Path::new(&output).exists());
    };
    refuse("build", &supernet, &["--weight-bits", "4"], 2, &["4 bits per channel", "8 bits", "2 bits"]);
    refuse("build", &supernet, &["--granularity", "tensor"], 2, &["per tensor"]);
    refuse("build", &supernet, &["--macs", "0.5"], 2, &["prune"]);
    refuse("build", &supernet, &["--elastic-epochs", "1"], 2, &["supernet"]);
    refuse("build", &supernet, &["--max-flash", "100", "--measured", "20"], 1, &["smallest file", "largest layers"]);
    refuse("build", &supernet, &["--scale", "1/8"], 2, &["0.0625", "0.125", "--scale"]);
    let recipe = folder.path("other.toml");
    std::fs::write(&recipe, "[quantize.layers.\"nowhere\"]\nweight_bits = 2\n").unwrap();
    refuse("build", &supernet, &["--recipe", &recipe], 2, &["another network", "'nowhere'"]);
    std::fs::write(&recipe, "[elastic]\nguidance = 7\n").unwrap();
    refuse("elastic", &onnx, &["--recipe", &recipe], 2, &["elastic.guidance", "share"]);
    for bits in ["0", "nan", "8.5", "-1"] {
        refuse("elastic", &onnx, &[&format!("--coded-bits={bits}")], 2, &["elastic.coded_bits", "above 0"]);
    }
    std::fs::write(&recipe, "[quantize.layers.\"conv1\"]\nsymmetric = false\n").unwrap();
    refuse("build", &onnx, &["--recipe", &recipe], 2, &["asymmetric", "quantize elastic"]);
    // A damaged supernet, and an archive that is none.
    let mut damaged = bytes(&supernet);
    let middle = damaged.len() / 2;
    damaged.truncate(middle);
    let path = folder.path("cut.supernet");
    std::fs::write(&path, damaged).unwrap();
    refuse("build", &path, &[], 2, &["cut.supernet", "supernet"]);
    refuse("search", &digits("digits_test.npz"), &["--max-flash", "4K"], 2, &["digits_test.npz", "no array"]);
    refuse("build", &supernet, &["--bit-price", "0.1", "--compress", "6"], 2, &["integers already"]);
    let unused = with_data("build", &supernet, &["--bit-price", "0.1", "-o", &model]);
    refused(unused, &["--bit-price", "--compress"], Some(&model));
}
